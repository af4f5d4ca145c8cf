"""Lua scripts: each runs in Redis as one step, between no other commands."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from server.cluster.connection import Connection

Argument = str | bytes | int


class Script:
    """One of `lua/`, to be called with a client, the keys it touches and its arguments."""

    def __init__(self, name: str) -> None:
        self._text = files("server.cluster").joinpath("lua", f"{name}.lua").read_text()
        self._digest = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self, redis: Connection, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        try:
            return await redis.evalsha(self._digest, len(keys), *keys, *arguments)
        except NoScriptError:  # nothing has run: Redis has lost its scripts, or never had ours
            return await redis.eval(self._text, len(keys), *keys, *arguments)


def checked_prefix(prefix: str) -> str:
    """The keys of one script must be in one slot, which is decided by what is in braces.

    Raises:
        ValueError: the prefix has braces, and would decide it for all keys.
    """
    if "{" in prefix or "}" in prefix:
        raise ValueError("no braces in the prefix of Redis keys")
    return prefix
