"""An identity provider for tests: it signs tokens, and serves its keys at a real address."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public half of a private key as a JWK; a member that is ... is left out."""
    kind: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        kind = RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        kind = ECAlgorithm
    made = {**kind.to_jwk(key.public_key(), as_dict=True), **members}
    return {name: value for name, value in made.items() if value is not ...}


@dataclass
class KeyServer:
    """`keys` maps key ids to private keys; what is served can be changed while it runs."""

    keys: dict[str, Any] = field(default_factory=dict)
    extra: list[Any] = field(default_factory=list)
    """JWKs that are served beside the keys'."""
    body: bytes | None = None
    """Served instead of the keys."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it takes requests and answers none."""
    is_trickling: bool = False
    """Whether it sends a byte now and then, for ever."""
    url: str = ""

    def __post_init__(self) -> None:
        self.answering.set()

    def new_key(self, key_id: str) -> Any:
        """Publish a new key. Returns: its private half."""
        key = self.keys[key_id] = ed25519.Ed25519PrivateKey.generate()
        return key

    def token(self, user_id: str, key_id: str, **claims: Any) -> str:
        """A token signed with the key of this id."""
        return token(self.keys[key_id], user_id, kid=key_id, **claims)

    def key_set(self) -> bytes:
        """What is served when all is well."""
        listed = [public_jwk(key, kid=key_id) for key_id, key in self.keys.items()]
        return json.dumps({"keys": [*listed, *self.extra]}).encode()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.hits += 1
        await self.answering.wait()
        if self.is_trickling:
            return await self._trickle(request)
        body = self.key_set() if self.body is None else self.body
        return web.Response(body=body, status=self.status, headers=self.headers)

    async def _trickle(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)


def token(key: Any, user_id: str = "ana", *, kid: Any = ..., **claims: Any) -> str:
    """A token signed with a private key, by the algorithm that goes with its type."""
    algorithm = "EdDSA"
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = "ES256"
    now = int(time.time())
    made = {"sub": user_id, "iat": now, "exp": now + 600, **claims}
    made = {name: value for name, value in made.items() if value is not ...}
    headers = {} if kid is ... else {"kid": kid}
    return jwt.encode(made, key, algorithm=algorithm, headers=headers)


@asynccontextmanager
async def key_server(*key_ids: str) -> AsyncIterator[KeyServer]:
    """A key server with a key for each of these ids."""
    server = KeyServer()
    for key_id in key_ids:
        server.new_key(key_id)
    app = web.Application()
    app.router.add_get("/keys", server.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield server
    finally:
        server.answering.set()
        await runner.cleanup()
