"""Models as JSON Schemas that stand in a document's `components/schemas`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]


class Schemas:
    """The schemas of all these models, and of what they are made of. A model may be missing fields
    that have a default, whichever way it goes."""

    def __init__(self, models: Iterable[type[BaseModel]]) -> None:
        named = dict.fromkeys(models)
        self._refs, self._made = models_json_schema(
            [(model, "validation") for model in named], ref_template="#/components/schemas/{model}"
        )

    def ref(self, model: type[BaseModel]) -> Schema:
        """Where a model's schema stands."""
        return dict(self._refs[model, "validation"])

    @property
    def components(self) -> dict[str, Schema]:
        found: dict[str, Schema] = self._made.get("$defs", {})
        return found


def first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def paragraph(text: str | None) -> str:
    """A docstring as one line of text."""
    return " ".join((text or "").split())
