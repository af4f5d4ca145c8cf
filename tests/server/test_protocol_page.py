"""docs/protocol.md against the API's documents and the settings: neither knows what the other does
not. What the page calls by a part of its name alone (`pause` after `workout:start`) does not count.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from handlers.streams import STREAMS
from server.apidocs import asyncapi, openapi
from server.settings import Settings
from tests.helpers.api_documents import DOCUMENT, EVENTS, ApiDocument

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
NOT_YET = "## Not served"
_SPAN = re.compile(r"`([^`\n]+)`")
_WORD = r"[a-z0-9_-]+"
_EVENT = re.compile(rf"{_WORD}(?::{_WORD})*:{_WORD}(?:\|{_WORD})*|(?:sync|awareness)-{_WORD}")
_PATH = re.compile(r"(?:GET )?(/[a-zA-Z0-9_./<>-]*)")


def spans(text: str) -> list[str]:
    """What stands in backticks; in a table a bar within them is escaped."""
    return [span.replace("\\|", "|") for span in _SPAN.findall(text)]


def page() -> str:
    text, _, _ = PAGE.read_text().partition(NOT_YET)
    return text


def section(number: int) -> str:
    [found] = re.findall(rf"(?ms)^## {number}\. .*?(?=^## |\Z)", page())
    return str(found)


def rows(text: str) -> list[list[str]]:
    """The cells of its tables' rows, their heads first."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip() for cell in row] for row in cells]


def events_in(text: str) -> set[str]:
    """The events that it names: `a:b {...}`, and `a:b|c` for two."""
    found = set()
    for span in spans(text):
        head = span.partition(" ")[0]
        if _EVENT.fullmatch(head):
            first, *others = head.split("|")
            parent = first.rpartition(":")[0]
            found |= {first, *(f"{parent}:{other}" for other in others)}
    return found


def documented_events() -> set[str]:
    document = ApiDocument(asyncapi())
    sides = [(channel, side) for channel in (EVENTS, DOCUMENT) for side in ("client", "server")]
    return set().union(*(document.events(*side) for side in sides))


def test_every_event_of_the_page_is_in_asyncapi() -> None:
    assert events_in(page()) - documented_events() - set(STREAMS.kinds) == set()


def test_every_stream_is_on_the_page_and_no_other() -> None:
    head, *_ = (part for part in section(5).split("\n\n") if part.startswith("| stream"))
    assert {spans(row[0])[0] for row in rows(head)[1:]} == set(STREAMS.kinds)


def test_every_event_of_asyncapi_is_on_the_page() -> None:
    plain = {span.partition(" ")[0] for span in spans(page())}
    assert documented_events() - events_in(page()) - plain == set()


def test_what_looks_like_an_event_is_read_as_one() -> None:
    text = "`workout:fly {id}` `a:b\\|c` `sync-nothing` `workout:<id>` `{a: b}` `mongodb://` `x`"
    assert events_in(text) == {"workout:fly", "a:b", "a:c", "sync-nothing"}


def test_every_path_of_openapi_is_on_the_page_and_no_other() -> None:
    named = {
        match[1].replace("<", "{").replace(">", "}")
        for span in spans(section(6))
        if (match := _PATH.fullmatch(span)) and not match[1].startswith("/socket.io")
    }
    assert named == set(openapi()["paths"])


def settings_on_the_page() -> list[tuple[str, str | None]]:
    """(name, default) of all that sections 7 and 8 list; None where it is told in words."""
    found: list[tuple[str, str | None]] = []
    for row in rows(section(7)) + rows(section(8)):
        names = [name for name in spans(row[0]) if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)]
        defaults: list[str | None] = list(spans(row[1]))
        if row[1] == "–":
            defaults = ["None"] * len(names)
        elif len(defaults) != len(names):
            defaults = [None] * len(names)
        found += zip(names, defaults, strict=True)
    return found


def test_every_setting_is_on_the_page_and_no_other() -> None:
    listed = {name for name, _ in settings_on_the_page()}
    assert listed == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(("name", "told"), settings_on_the_page())
def test_a_default_is_as_the_page_tells_it(name: str, told: str | None) -> None:
    default = Settings.model_fields[name.lower()].default
    assert not isinstance(default, SecretStr)
    if told is None or (default is None and told != "None"):
        return  # words, such as what is made where there is none
    if isinstance(default, bool):
        assert told == str(default).lower()
    elif isinstance(default, int | float):
        assert float(told) == default
    else:
        assert told == str(default)
