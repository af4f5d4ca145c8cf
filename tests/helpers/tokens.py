"""Tokens for tests: as a library makes them, and as none would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt

SECRET = "a secret of more than thirty-two bytes"


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "ana", "exp": int(time.time()) + 600, **changes}
    return {key: value for key, value in made.items() if value is not ...}


def signed(payload: Any = None, key: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes) if payload is None else payload, key, algorithm=algorithm)


def by_hand(payload: Any, header: dict[str, Any], secret: bytes = SECRET.encode()) -> str:
    """A token that no library would make, with a good HS256 signature."""

    def part(data: Any) -> bytes:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    text = part(header) + b"." + part(payload)
    return (text + b"." + part(hmac.digest(secret, text, hashlib.sha256))).decode()
