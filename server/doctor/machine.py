"""This machine: the settings, the data folder, the files in it, the port, the limits."""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import resource
import socket
import sqlite3
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from server.doctor.finding import Finding, address, failure, in_thread, ok, warning, within
from server.settings import Settings

LEAST_FREE_BYTES, LITTLE_FREE_BYTES = 64 * 1024**2, 512 * 1024**2
FILES_BESIDE_CONNECTIONS = 200
CHECK_FILE_S = 2.5
ASK_TIMEOUT_S = 1.5
LIKE = 0.8
"""How much a variable's name must be like that of a setting to be taken for a slip."""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    yield setup(settings)
    for finding in misspelt(dict(os.environ)):
        yield finding
    for subject, what, check in (
        ("folder", "DATA_DIR", folder),
        ("disk", "DATA_DIR", space),
        ("files", "DATA_DIR", files),
    ):
        yield await within(subject, what, in_thread(lambda check=check: check(settings)))  # type: ignore[misc]
    yield await within("port", f"PORT {settings.port}", port(settings))
    yield open_files(settings)


# -- settings ---------------------------------------------------------------------------------


def setup(settings: Settings) -> Finding:
    """Which kind of server this is to be."""
    if settings.mongodb_uri is None:
        return ok("settings", f"embedded: one server, SQLite in {settings.data_dir.resolve()}")
    mongodb = address(settings.mongodb_uri.get_secret_value())
    if settings.redis_url is None:
        return ok("settings", f"one server, MongoDB at {mongodb}")
    redis = address(settings.redis_url.get_secret_value())
    text = f"several instances, Redis at {redis}, MongoDB at {mongodb}"
    if not settings.bus_secret:
        return warning(
            "settings",
            f"{text}; without BUS_SECRET, whoever can write to Redis can write in anybody's name:"
            " set the same one for all",
        )
    return ok("settings", text)


def misspelt(environment: dict[str, str]) -> list[Finding]:
    """Variables that look like one of ours and are none."""
    names = [name.upper() for name in Settings.model_fields]
    found = []
    for name in environment.keys() - set(names):
        meant = difflib.get_close_matches(name.upper(), names, 1, LIKE)
        if meant and meant[0] not in environment:
            found.append(warning("settings", f"{name} is no setting: is {meant[0]} meant?"))
    return sorted(found, key=str)


# -- the data folder --------------------------------------------------------------------------


def folder(settings: Settings) -> Finding:
    """Whether it can be written, by us."""
    path = settings.data_dir
    if not path.exists():
        parent = next((up for up in path.absolute().parents if up.exists()), Path("/"))
        reason = _unwritable(parent)
        if reason:
            return failure(
                "folder", f"DATA_DIR {path} is not there, and cannot be made: {parent} {reason}"
            )
        return ok("folder", f"DATA_DIR {path.resolve()} will be made at the start")
    if not path.is_dir():
        return failure("folder", f"DATA_DIR {path} is no folder: name another one")
    reason = _unwritable(path)
    if reason:
        return failure("folder", f"DATA_DIR {path} {reason}")
    owner = path.stat().st_uid
    if owner != os.geteuid():
        return warning(
            "folder",
            f"DATA_DIR {path} belongs to user {owner}, this is {os.geteuid()}: run as its owner",
        )
    secret = path / "jwt_secret"
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        return warning("folder", f"{secret} can be read by others: chmod 600 {secret}")
    return ok("folder", f"DATA_DIR {path.resolve()} can be written")


def _unwritable(path: Path) -> str:
    """Why nothing can be written into a folder, and what to do; empty if it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        match exc.errno:
            case errno.EROFS:
                return "is on a read-only file system: mount it for writing, or name another one"
            case errno.EACCES | errno.EPERM:
                mode = stat.S_IMODE(path.stat().st_mode)
                return (
                    f"is read-only for user {os.geteuid()} (mode {mode:o}, of user"
                    f" {path.stat().st_uid}): chown or chmod it, or name another one"
                )
            case errno.ENOSPC | errno.EDQUOT:
                return "is on a disk that is full: make room, or name another one"
        return f"cannot be written ({exc.strerror}): name another one"
    return ""


def space(settings: Settings) -> Finding:
    """Whether there is room to write."""
    path = settings.data_dir.absolute()
    existing = next(up for up in (path, *path.parents) if up.exists())
    found = os.statvfs(existing)
    free_bytes = found.f_bavail * found.f_frsize
    free = f"{free_bytes / 1024**2:,.0f} MiB are free at {existing}"
    if free_bytes < LEAST_FREE_BYTES or (found.f_files and not found.f_favail):
        return failure("disk", f"{free}, or no more files can be made: make room")
    if settings.redis_url is not None and free_bytes < settings.spool_max_bytes:
        spool = f"SPOOL_MAX_BYTES is {settings.spool_max_bytes / 1024**2:,.0f} MiB"
        return warning("disk", f"{free}, and {spool}: make room, or lower it")
    if free_bytes < LITTLE_FREE_BYTES:
        return warning("disk", f"{free}: make room")
    return ok("disk", free)


def files(settings: Settings) -> Finding:
    """Whether the database of this server's own is whole, and who has it open."""
    if settings.redis_url is not None:
        path, lock = settings.data_dir / "spool.db", settings.data_dir / "spool.lock"
    elif settings.mongodb_uri is None:
        path, lock = settings.data_dir / "repsync.db", settings.data_dir / "lock"
    else:
        return ok("files", "no database is kept in DATA_DIR")
    if not path.exists():
        return ok("files", f"{path.name} will be made at the start")
    if not os.access(path, os.W_OK):
        return failure(
            "files",
            f"{path} cannot be written by user {os.geteuid()}: chown it, or run as its owner",
        )
    try:
        found = _quick_check(path)
    except sqlite3.DatabaseError as exc:
        found = str(exc)
    except TimeoutError:
        return warning("files", f"{path} is too large to be checked in {CHECK_FILE_S:g} s")
    if found != "ok":
        return failure(
            "files",
            f"{path} is damaged ({found.splitlines()[0]}): keep a copy of it, then restore a backup"
            " or move it away",
        )
    if _is_locked(lock):
        return warning(
            "files",
            f"{path} is whole, and in use by a running server: that one is fine, a second one needs"
            " another DATA_DIR",
        )
    return ok("files", f"{path} is whole")


def _quick_check(path: Path) -> str:
    """`ok`, or what is wrong. Raises sqlite3.DatabaseError, TimeoutError."""
    if path.is_dir():
        return "it is a folder"
    deadline_s = time.monotonic() + CHECK_FILE_S
    # Without a WAL nobody has it open: read like this, none is made.
    is_open = path.with_name(f"{path.name}-wal").exists()
    mode = "mode=ro" if is_open else "immutable=1"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
    try:
        db.set_progress_handler(lambda: int(time.monotonic() > deadline_s), 10_000)
        return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as exc:
        if "interrupt" in str(exc):
            raise TimeoutError from exc
        raise
    finally:
        db.close()


def _is_locked(path: Path) -> bool:
    """Whether a server has the folder."""
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# -- the port, and other limits ---------------------------------------------------------------


async def port(settings: Settings) -> Finding:
    """Whether the server may listen there, and if not who does."""
    host, number = settings.host, settings.port
    try:
        await in_thread(lambda: _listen(host, number))
    except socket.gaierror:
        return failure("port", f"HOST {host} cannot be resolved: name an address of this machine")
    except OSError as exc:
        match exc.errno:
            case errno.EADDRINUSE:
                return await _who_has(host, number)
            case errno.EADDRNOTAVAIL:
                return failure(
                    "port", f"HOST {host} is no address of this machine: 127.0.0.1, or 0.0.0.0?"
                )
            case errno.EACCES | errno.EPERM:
                return failure("port", f"PORT {number} is for root only: set one above 1023")
        return failure("port", f"{host}:{number} cannot be listened on ({exc.strerror})")
    if not number:
        return ok("port", f"{host}, at any free port (PORT is 0)")
    return ok("port", f"{host}:{number} is free")


def _listen(host: str, number: int) -> None:
    """As the server will. Raises OSError."""
    for family, kind, proto, _, where in socket.getaddrinfo(
        host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(where)
            probe.listen(1)


async def _who_has(host: str, number: int) -> Finding:
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    taken = f"PORT {number} is taken"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ASK_TIMEOUT_S)) as http,
            http.get(f"http://{here}:{number}/health", allow_redirects=False) as response,
        ):
            is_ours = response.headers.get("Server") == "RepSync"
            status = json.loads(await response.content.read(64 * 1024))["status"] if is_ours else ""
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        is_ours, status = False, ""
    if is_ours:
        return warning(
            "port",
            f"{taken} by a RepSync that is {status}: that one is fine, a second one needs another"
            " PORT",
        )
    return failure("port", f"{taken} by another program: end it, or set PORT to a free one")


def open_files(settings: Settings) -> Finding:
    """Whether the process may have as many sockets as the settings allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        return warning(
            "limits",
            f"{soft} files may be open, MAX_CONNECTIONS is {settings.max_connections}: raise the"
            f" limit to {wanted} (ulimit -n, LimitNOFILE=), or lower MAX_CONNECTIONS",
        )
    return ok("limits", f"{soft} files may be open for {settings.max_connections} connections")
