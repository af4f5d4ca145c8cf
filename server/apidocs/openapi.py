"""HTTP as an OpenAPI 3.1 document: one row for each path, held against the routes by a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from crdt.shown import Template, Workout
from handlers.health import HealthReport
from handlers.registry import Failure
from server import VERSION, told
from server.apidocs.schemas import Schemas

Content = type[BaseModel] | str | tuple[str, ...]
"""What a response holds: a model, as JSON; else its media type, or one of several."""

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Path:
    """A path that takes GET and HEAD. `parameters`: what stands in it -> what it is."""

    summary: str
    responses: Mapping[int, Content | None]
    parameters: Mapping[str, str] = field(default_factory=dict)
    needs_token: bool = False


PATHS: dict[str, Path] = {
    "/": Path(
        "The page for whoever watches; without HTML, a word.", {200: (HTML, TEXT), 304: None}
    ),
    "/dashboard/{name}": Path(
        "A file of the page.",
        {200: ("text/css", "text/javascript", "image/svg+xml"), 304: None, 404: Failure},
        {"name": "the file's name"},
    ),
    "/health": Path(
        "How the server is: healthy, degraded (206) or unhealthy (503).",
        {200: HealthReport, 206: HealthReport, 503: HealthReport},
    ),
    "/ready": Path("Whether clients may be sent here.", {200: told.Readiness, 503: told.Readiness}),
    "/live": Path("That the process runs.", {200: told.Liveness}),
    "/metrics": Path("What Prometheus scrapes.", {200: TEXT}),
    "/health/live": Path("The same as Server-Sent Events: `health`.", {200: SSE, 503: Failure}),
    "/streams/{stream}": Path(
        "A stream as Server-Sent Events, each with the id `<instance>-<seq>`; `Last-Event-ID` goes"
        " on from there. `end` carries why it ends.",
        {200: SSE, 401: Failure, 403: Failure, 404: Failure, 429: Failure, 503: Failure},
        {"stream": "the stream's name, such as `workout:leg-day:progress`"},
        needs_token=True,
    ),
    "/api/v1/workouts/{id}": Path(
        "A workout's snapshot.",
        {200: Workout, 401: Failure, 403: Failure, 404: Failure, 429: Failure, 503: Failure},
        {"id": "the workout's id"},
        needs_token=True,
    ),
    "/api/v1/templates/{id}": Path(
        "A template's snapshot.",
        {200: Template, 401: Failure, 403: Failure, 404: Failure, 429: Failure, 503: Failure},
        {"id": "the template's id"},
        needs_token=True,
    ),
    "/asyncapi.json": Path("The sockets, as an AsyncAPI 3.0 document.", {200: JSON, 304: None}),
    "/openapi.json": Path("This document.", {200: JSON, 304: None}),
}

_DESCRIPTION = (
    "What there is besides the sockets, which `/asyncapi.json` describes. Every path answers"
    " `OPTIONS` as well. An error is the object that an ack would be. Objects may hold more than is"
    " said here."
)


def openapi() -> dict[str, Any]:
    """The document, as plain values."""
    models = [
        content
        for path in PATHS.values()
        for content in path.responses.values()
        if isinstance(content, type)
    ]
    schemas = Schemas([*models, Failure])
    return {
        "openapi": "3.1.0",
        "info": {"title": "RepSync", "version": VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": {path: _described(name, schemas) for path, name in PATHS.items()},
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _described(path: Path, schemas: Schemas) -> dict[str, Any]:
    return {
        method: {
            "summary": path.summary,
            "parameters": [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": text,
                    "schema": {"type": "string"},
                }
                for name, text in path.parameters.items()
            ],
            "security": [{"token": []}] if path.needs_token else [],
            "responses": {
                **{
                    str(status): _response(status, content, schemas, method == "get")
                    for status, content in path.responses.items()
                },
                "default": _response(None, Failure, schemas, method == "get"),
            },
        }
        for method in ("get", "head")
    }


def _response(
    status: int | None, content: Content | None, schemas: Schemas, has_body: bool
) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase if status else "An error."}
    if content is None or not has_body:
        return response
    if isinstance(content, type):
        response["content"] = {JSON: {"schema": schemas.ref(content)}}
    else:
        response["content"] = {
            media: {"schema": {"type": "object" if media == JSON else "string"}}
            for media in ([content] if isinstance(content, str) else content)
        }
    return response
