"""Whether a server can be reached at all, before anybody speaks with it: by its name, its port, and
with TLS or without."""

from __future__ import annotations

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from server.doctor.finding import address

CONNECT_TIMEOUT_S = 2.0
HANDSHAKE_TIMEOUT_S = 1.0

_UNTRUSTED = "its certificate is not trusted: name its CA's file in the address, or the right host"

Where = tuple[str, int] | str
"""Host and port, or the path of a socket."""


class Unreachable(Exception):
    """No connection can be made. The text says what is so, and what to do."""


def places(url: str, default_port: int) -> list[Where]:
    """Where an address leads; several places for a cluster. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return [parts.path]
    found: list[Where] = []
    for one in address(url).split(","):
        at = urlsplit(f"//{one}")
        found.append((at.hostname or "localhost", at.port or default_port))
    return found


def any_tls() -> ssl.SSLContext:
    """TLS by whatever certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def demand_reachable(where: list[Where], tls: ssl.SSLContext | None = None) -> None:
    """Raises Unreachable unless one of these takes a connection, and this TLS on it, if any."""
    reasons = []
    for place in where:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S / len(where)):
                await _connect(place)
            break
        except (OSError, UnicodeError) as exc:  # TimeoutError as well
            reasons.append(_why(place, exc))
    else:
        raise Unreachable(reasons[0])
    if tls is not None:
        await _demand_tls(place, tls)


async def _demand_tls(place: Where, tls: ssl.SSLContext) -> None:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await _connect(place, tls)
    except ssl.SSLCertVerificationError as exc:
        raise Unreachable(_UNTRUSTED) from exc
    except (OSError, ValueError) as exc:
        raise Unreachable("it does not speak TLS: leave TLS out of the address") from exc


async def _connect(place: Where, context: ssl.SSLContext | None = None) -> None:
    if isinstance(place, str):
        _, writer = await asyncio.open_unix_connection(place, ssl=context)
    else:
        _, writer = await asyncio.open_connection(*place, ssl=context)
    writer.transport.abort()


def _why(place: Where, exc: Exception) -> str:
    match exc:
        case socket.gaierror() | UnicodeError():
            return f"the name {place[0]} cannot be resolved: correct the host, or DNS"
        case ConnectionRefusedError():
            return "it refuses connections: start it, or correct host and port"
        case FileNotFoundError():
            return "it is not there: start it, or correct the path"
        case TimeoutError():
            return "no connection comes about in time: look at the host, and at firewalls"
        case OSError(strerror=str(reason)):
            return f"it cannot be reached ({reason}): correct host and port, or look at the network"
    return "it refuses connections: start it, or correct host and port"


async def why_silent(where: list[Where], uses_tls: bool, exc: BaseException) -> str:
    """A connection is made, and no answer comes: what is so, and what to do."""
    if "certificate verify failed" in str(exc).lower():
        return _UNTRUSTED
    if not uses_tls:
        try:
            await _demand_tls(where[0], any_tls())
        except Unreachable:
            pass
        else:
            return "it speaks TLS only: ask for TLS in the address"
    return "it takes connections, and does not answer: look whether it hangs, and at its log"
