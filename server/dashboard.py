"""The page at `/`, for whoever watches: its files, as they lie in `dashboard/`.

They are read once, at the start, and served from memory: no path of a request's reaches the disk.
Nothing is built. What npm brings along is the chart library, copied to `dashboard/dist`; without it
the page draws simpler charts. Where the page's files are missing altogether, and for clients that
want no HTML, there is a plain text instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

FOLDER = Path(__file__).parents[1] / "dashboard"

GREETING = """RepSync is running.

Socket.IO v4 at /socket.io/, namespaces / and /yjs|<document>
/  in a browser: what is going on   /health  how it is
/ready  whether to send clients here   /metrics  for Prometheus
/live  that it runs   /asyncapi.json, /openapi.json  the protocol, for tools
"""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What the page may do: nothing but its own files and this server. It makes no HTML from text."""

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    content_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> _Asset:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return cls(content, _TYPES[path.suffix], digest)

    def respond(self, request: web.Request) -> web.Response:
        """The file, or 304 to a browser that has it: a new version is there with the next load."""
        known = any(tag.value in (self.etag, "*") for tag in request.if_none_match or ())
        response = web.Response(status=304) if known else self._whole()
        response.etag = self.etag
        response.headers[hdrs.CACHE_CONTROL] = "no-cache"
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    def _whole(self) -> web.Response:
        return web.Response(body=self.content, content_type=self.content_type, charset="utf-8")


def add_routes(app: web.Application) -> None:
    """Serve the page at `/`, and what it consists of under `/dashboard/`."""
    assets = dict(_assets(FOLDER))
    page = assets.pop("index.html", None)

    async def show_page(request: web.Request) -> web.Response:
        if page is None or "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
            return web.Response(text=GREETING)
        return page.respond(request)  # a cache that has it asks each time, so this needs no `Vary`

    async def show_asset(request: web.Request) -> web.Response:
        asset = assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return asset.respond(request)

    app.router.add_get("/", show_page)
    app.router.add_get("/dashboard/{name}", show_asset)


def _assets(folder: Path) -> Iterator[tuple[str, _Asset]]:
    """The files by the names they are asked for: `charts.js` is one of two."""
    for part in (folder / "src", folder / "dist"):
        for path in sorted(part.glob("*")):
            if path.suffix in _TYPES:
                yield path.name, _Asset.read(path)
    has_library = (folder / "dist" / "uPlot.js").exists()
    drawn_by = folder / "src" / f"charts-{'uplot' if has_library else 'svg'}.js"
    if drawn_by.exists():
        yield "charts.js", _Asset.read(drawn_by)
