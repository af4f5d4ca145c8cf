"""`python -m server doctor` as somebody runs it in a terminal: its lines, and its exit code."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.ports import free_port
from tests.helpers.servers import ROOT, ServerProcess, clean_env
from tests.helpers.tokens import SECRET, signed

pytestmark = pytest.mark.system

DEADLINE_S = 60.0
PASSWORD = "hunter2"


async def doctor(
    folder: Path,
    *arguments: str,
    given: str = "",
    before: Callable[[], None] | None = None,
    **env: str,
) -> tuple[int, list[str]]:
    """Returns: the exit code and the lines."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "doctor", *arguments),
        cwd=ROOT,
        env={**clean_env(), "DATA_DIR": str(folder), "PORT": "0", **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=before,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate(given.encode())
    assert err == b""
    assert PASSWORD.encode() not in out
    assert SECRET.encode() not in out
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines()


def failed(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


async def test_a_machine_that_is_well(tmp_path: Path) -> None:
    code, lines = await doctor(tmp_path / "data", MAX_CONNECTIONS="100")
    assert code == 0
    assert all(line.startswith("ok ") for line in lines[:-1]), lines
    assert lines[-1] == f"0 failed, 0 warnings, {len(lines) - 1} ok"
    assert not (tmp_path / "data").exists()


async def test_a_secret_that_is_too_short(tmp_path: Path) -> None:
    code, lines = await doctor(tmp_path, JWT_SECRET=PASSWORD)
    assert code == 2
    [line] = lines
    assert line.startswith("FAIL     settings  JWT_SECRET is shorter than the 32 bytes")
    assert "openssl rand" in line


async def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    code, [line] = await doctor(tmp_path, REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1")
    assert code == 2
    assert "REDIS_URL is set and MONGODB_URI is not" in line


async def test_a_token_that_another_secret_has_signed(tmp_path: Path) -> None:
    token = signed(key="another secret of more than thirty-two bytes")
    for arguments, given in ((("--token", token), ""), (("--token", "-"), f"{token}\n")):
        code, lines = await doctor(tmp_path, *arguments, given=given, JWT_SECRET=SECRET)
        assert code == 1
        [line] = failed(lines)
        assert "signature is wrong" in line
        assert token not in "\n".join(lines)
    code, lines = await doctor(tmp_path, "--token", signed(), JWT_SECRET=SECRET)
    assert (code, failed(lines)) == (0, [])


async def test_databases_that_are_down(tmp_path: Path) -> None:
    redis, mongodb = free_port(), free_port()
    code, lines = await doctor(
        tmp_path,
        JWT_SECRET=SECRET,
        REDIS_URL=f"redis://u:{PASSWORD}@127.0.0.1:{redis}",
        MONGODB_URI=f"mongodb://u:{PASSWORD}@127.0.0.1:{mongodb}/gym",
    )
    assert code == 1
    of_redis, of_mongodb = failed(lines)
    assert f"Redis at 127.0.0.1:{redis}: it refuses connections: start it" in of_redis
    assert f"MongoDB at 127.0.0.1:{mongodb}: it refuses connections: start it" in of_mongodb
    assert lines[-1].startswith("2 failed")


async def test_a_data_folder_that_is_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o500)
    code, lines = await doctor(folder, before=obey_modes)
    folder.chmod(0o700)
    assert code == 1
    [line] = failed(lines)
    assert f"DATA_DIR {folder} is read-only for user {os.geteuid()} (mode 500" in line
    assert "chown or chmod it" in line


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, lines = await doctor(tmp_path, PORT=port)
    assert code == 1
    [line] = failed(lines)
    assert f"PORT {port} is taken by another program" in line


async def test_a_server_that_runs_is_no_fault(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    try:
        await server.start()
        code, lines = await doctor(tmp_path, PORT=str(server.port))
        assert (code, failed(lines)) == (0, [])
        assert any("taken by a RepSync" in line for line in lines)
        assert any("in use by a running server" in line for line in lines)
        assert await server.terminate() == 0
    finally:
        await server.stop()


def obey_modes() -> None:
    """Take from the process that is to be started the right to write what it may not: root has it
    by a capability, not by being root."""
    if os.geteuid() != 0:
        return
    drop_from_bounding_set, override, read_search = 24, 1, 2
    for capability in (override, read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)
