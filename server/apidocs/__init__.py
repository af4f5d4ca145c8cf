"""The API as documents for tools: `/asyncapi.json` for the sockets, `/openapi.json` for HTTP.

Both are made of the models that say what is carried, answered and told, so they are as right as
these. They are made once, when first asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from aiohttp import hdrs, web

from server.apidocs.asyncapi import asyncapi
from server.apidocs.openapi import openapi

__all__ = ["add_routes", "asyncapi", "openapi"]

_HEADERS = {
    hdrs.CONTENT_TYPE: "application/json",
    hdrs.CACHE_CONTROL: "no-cache",  # kept, and asked for again by its ETag
}


def add_routes(app: web.Application) -> None:
    for path, make in (("/asyncapi.json", asyncapi), ("/openapi.json", openapi)):
        app.router.add_get(path, _Served(make).serve)


class _Served:
    """A document that is made once."""

    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self._make = make

    async def serve(self, request: web.Request) -> web.Response:
        # It takes a tenth of a second, which the event loop has not got.
        body, etag = await asyncio.to_thread(_made, self._make)
        known = request.if_none_match or ()
        is_known = any(tag.value in (etag, "*") for tag in known)
        response = web.Response(
            status=304 if is_known else 200, body=None if is_known else body, headers=_HEADERS
        )
        response.etag = etag
        return response


@cache
def _made(make: Callable[[], Mapping[str, Any]]) -> tuple[bytes, str]:
    """A document as it is sent, and its ETag."""
    body = json.dumps(make(), ensure_ascii=False).encode()
    return body, hashlib.sha256(body).hexdigest()[:32]
