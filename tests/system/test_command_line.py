"""`python -m server` as somebody meets it in a terminal: what it prints, and why it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from server.__main__ import _parser
from server.replay.devices import EventClient, Refused
from server.settings import Settings
from tests.helpers.key_servers import key_server
from tests.helpers.servers import ROOT, ServerProcess, clean_env

pytestmark = pytest.mark.system

SECRET = "a secret of more than thirty-two bytes"
DEADLINE_S = 30.0


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("repsync: ")
        return lines[0]


async def run(*arguments: str, data: Path, **env: str) -> Outcome:
    """Run it to its end; a server that should not have started is an error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        *arguments,
        cwd=ROOT,
        env={**clean_env(), "DATA_DIR": str(data), "PORT": "0", **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


class Serving(ServerProcess):
    """A started server with its greeting; the first line has been read by `start`."""

    async def greeted(self) -> list[str]:
        """The lines of the greeting that follow the address."""
        assert self.process is not None
        assert self.process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = (await self.process.stdout.readline()).decode().rstrip()
                if not line:
                    return lines
                lines.append(line)
                if "another one" in line:
                    return lines

    async def start(self) -> Serving:
        """Start it, and wait until it answers: then it heeds signals, too."""
        await super().start()
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/ready") as ready:
            assert ready.status == 200
        return self

    async def __aenter__(self) -> Serving:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def welcome(server: ServerProcess, token: str) -> dict[str, object]:
    client = EventClient(server.url, token)
    try:
        return (await client.connect()).welcome
    finally:
        await client.close()


# -- the greeting ---------------------------------------------------------------------------------


async def test_the_greeting_gives_tokens_that_work_and_names_the_data_folder(
    tmp_path: Path,
) -> None:
    async with Serving(tmp_path / "data") as server:
        lines = await server.greeted()
        assert any(str((tmp_path / "data").resolve()) in line for line in lines)
        tokens = re.findall(r"\S+\.\S+\.\S+(?=\n|$)", "\n".join(lines))
        users = [(await welcome(server, token))["user"] for token in tokens]
        assert users == [
            {"id": "lifter", "name": "Lifter", "role": "user"},
            {"id": "coach", "name": "Coach", "role": "trainer"},
            {"id": "operator", "name": "Operator", "role": "admin"},
        ]


async def test_no_token_is_printed_where_a_secret_is_configured(tmp_path: Path) -> None:
    async with Serving(tmp_path, {"JWT_SECRET": SECRET}) as server:
        assert await server.terminate() == 0
        rest = "\n".join(await server.greeted())
        assert "token for" not in rest
        assert "eyJ" not in rest
        assert SECRET not in rest
        assert not (tmp_path / "jwt_secret").exists()


async def test_the_secret_is_for_the_owner_alone_and_stays_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Serving(data) as server:
        token = next(line.split()[-1] for line in await server.greeted() if "a lifter" in line)
        secret = (data / "jwt_secret").read_text()
        assert len(secret) >= 32
        assert stat.S_IMODE((data / "jwt_secret").stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert await server.terminate() == 0
        await server.start()
        assert (data / "jwt_secret").read_text() == secret
        assert stat.S_IMODE((data / "jwt_secret").stat().st_mode) == 0o600
        assert (await welcome(server, token))["user"]["id"] == "lifter"  # type: ignore[index]


async def test_ctrl_c_ends_it_well(tmp_path: Path) -> None:
    async with Serving(tmp_path, {"JWT_SECRET": SECRET}) as server:
        await welcome(server, jwt.encode({"sub": "ana", "exp": 2**33}, SECRET))
        assert await ended_by(server, signal.SIGINT) == 0


async def test_it_ends_well_as_soon_as_it_has_greeted(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    try:
        for number in (signal.SIGTERM, signal.SIGINT) * 4:
            await server.start()
            assert await ended_by(server, number) == 0
    finally:
        await server.stop()


async def ended_by(server: ServerProcess, number: signal.Signals) -> int:
    assert server.process is not None
    server.process.send_signal(number)
    async with asyncio.timeout(DEADLINE_S):
        return await server.process.wait()


# -- token ----------------------------------------------------------------------------------------


async def test_a_token_of_the_command_line_is_good_for_a_day(tmp_path: Path) -> None:
    made = await run("token", "--user", "ana", data=tmp_path)
    assert made.code == 0
    claims = jwt.decode(made.out.strip(), options={"verify_signature": False})
    assert claims["sub"] == "ana"
    assert claims["role"] == "user"
    assert claims["exp"] - claims["iat"] == pytest.approx(86_400, abs=2)
    async with Serving(tmp_path) as server:
        assert (await welcome(server, made.out.strip()))["user"] == {
            "id": "ana",
            "name": "ana",
            "role": "user",
        }


async def test_a_token_takes_role_name_and_ttl_and_the_configured_secret(tmp_path: Path) -> None:
    made = await run(
        *("token", "--user", "ana", "--role", "trainer", "--name", "Ana", "--ttl", "60"),
        data=tmp_path,
        JWT_SECRET=SECRET,
        JWT_ISSUER="app",
        JWT_AUDIENCE="repsync",
    )
    claims = jwt.decode(
        made.out.strip(), SECRET, algorithms=["HS256"], issuer="app", audience="repsync"
    )
    assert (claims["role"], claims["name"]) == ("trainer", "Ana")
    assert claims["exp"] - claims["iat"] == pytest.approx(60, abs=2)
    assert not (tmp_path / "jwt_secret").exists()


async def test_a_token_can_be_made_while_the_server_runs(tmp_path: Path) -> None:
    async with Serving(tmp_path) as server:
        made = await run("token", "--user", "ben", "--role", "admin", data=tmp_path)
        assert (await welcome(server, made.out.strip()))["user"]["role"] == "admin"  # type: ignore[index]


async def test_a_token_that_has_run_out_is_refused_by_its_name(tmp_path: Path) -> None:
    made = await run("token", "--user", "ben", "--ttl", "0.001", data=tmp_path)
    claims = jwt.decode(made.out.strip(), options={"verify_signature": False})
    stale = jwt.encode({**claims, "exp": 1}, (tmp_path / "jwt_secret").read_text())
    async with Serving(tmp_path) as server:
        with pytest.raises(Refused) as refused:
            await welcome(server, stale)
        assert refused.value.error["code"] == "token_expired"


async def test_a_public_key_alone_signs_nothing(tmp_path: Path) -> None:
    made = await run("token", "--user", "ana", data=tmp_path, JWT_PUBLIC_KEY=public_pem())
    assert "JWT_PUBLIC_KEY" in made.complaint


async def test_a_key_set_alone_signs_nothing(tmp_path: Path) -> None:
    url = "https://host.example/jwks"
    made = await run("token", "--user", "ana", data=tmp_path, JWT_JWKS_URL=url)
    assert "JWT_JWKS_URL can check tokens, not sign them" in made.complaint
    assert not (tmp_path / "jwt_secret").exists()


async def test_a_server_with_a_key_set_prints_no_token_and_lets_in_by_the_set(
    tmp_path: Path,
) -> None:
    async with key_server("k1") as provider:
        server = Serving(tmp_path, {"JWT_JWKS_URL": provider.url, "HOST": "0.0.0.0"})
        try:
            await ServerProcess.start(server)  # it may not be ready yet
            user = (await welcome(server, provider.token("ana", "k1")))["user"]
            assert user == {"id": "ana", "name": "ana", "role": "user"}
            assert await server.terminate() == 0
            assert "token for" not in "\n".join(await server.greeted())
        finally:
            await server.stop()
    assert not (tmp_path / "jwt_secret").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("token",),
        ("token", "--user", "ana", "--role", "king"),
        ("token", "--user", "ana", "--ttl", "0"),
        ("token", "--user", "ana", "--ttl", "-5"),
        ("token", "--user", "ana", "--ttl", "nan"),
        ("token", "--user", "ana", "--ttl", "soon"),
        ("dance",),
        ("--dance",),
    ],
)
async def test_arguments_that_there_are_not_are_explained(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    refused = await run(*arguments, data=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("usage: python -m server")
    assert "Traceback" not in refused.err


# -- help -----------------------------------------------------------------------------------------

COMMANDS = [
    found[1]
    for line in _parser().format_help().splitlines()
    if (found := re.match(r"    (\w+)  ", line))
]


async def help_of(command: str, data: Path) -> str:
    """What `--help` prints, for a command or for all (empty)."""
    # What the environment holds does not matter yet.
    helped = await run(*filter(None, [command]), "--help", data=data, PORT="no number")
    assert helped.code == 0
    assert helped.err == ""
    assert not data.exists()
    return helped.out


def test_every_command_is_listed() -> None:
    assert {"serve", "worker", "token", "replay", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
async def test_help_teaches_by_examples_settings_and_exit_codes(
    tmp_path: Path, command: str
) -> None:
    text = await help_of(command, tmp_path / "data")
    assert text.startswith("usage: python -m server")
    assert max(map(len, text.splitlines())) <= 90
    examples, _, rest = text.partition("\nexamples:\n")[2].partition("\n\n")
    assert examples
    for line in examples.splitlines():
        assert_would_be_taken(line, command)
    assert re.search(r"(?m)^exit codes:$", rest)
    assert re.search(r"(?m)^  0 ", rest.partition("exit codes:")[2])
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", rest.partition("settings")[2]))
    settings = {name.upper() for name in Settings.model_fields}
    assert named & settings
    assert {name for name in named if "_" in name} - settings == set()


def assert_would_be_taken(example: str, command: str) -> None:
    """The example is one of the command line's, and of this command's."""
    line = re.sub(r"\s{3,}.*$|\s<\s.*$", "", example.strip())
    assignments, _, arguments = line.partition("python -m server")
    for name in re.findall(r"([A-Z_]+)=", assignments):
        assert name.lower() in Settings.model_fields
    given = shlex.split(arguments)
    if given == ["COMMAND", "--help"]:
        return
    parsed = _parser().parse_args(given)
    assert command in ("", parsed.command)


# -- refusals -------------------------------------------------------------------------------------


async def test_a_second_server_on_the_same_folder_is_told_so(tmp_path: Path) -> None:
    async with Serving(tmp_path) as server:
        second = await run(data=tmp_path)
        assert "is in use by another server" in second.complaint
        assert str(tmp_path) in second.complaint
        assert await server.terminate() == 0
        await server.start()


@pytest.mark.parametrize("command", ["serve", "token"])
async def test_a_file_in_the_place_of_the_folder_is_told_so(tmp_path: Path, command: str) -> None:
    data = tmp_path / "data"
    data.write_text("mine")
    arguments = ("token", "--user", "ana") if command == "token" else ()
    refused = await run(*arguments, data=data)
    assert str(data) in refused.complaint
    assert data.read_text() == "mine"


async def test_a_folder_that_cannot_be_made_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused = await run(data=tmp_path / "file" / "data")
    assert str(tmp_path / "file" / "data") in refused.complaint


async def test_a_folder_in_place_of_the_database_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "repsync.db").mkdir()
    assert "repsync.db" in (await run(data=tmp_path)).complaint


async def test_a_file_that_is_no_database_is_told_so_and_kept(tmp_path: Path) -> None:
    (tmp_path / "repsync.db").write_bytes(b"no database at all" * 100)
    assert "repsync.db" in (await run(data=tmp_path)).complaint
    assert (tmp_path / "repsync.db").read_bytes() == b"no database at all" * 100


async def test_data_of_a_newer_version_are_told_so_and_kept(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "repsync.db")
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert "newer" in (await run(data=tmp_path)).complaint


async def test_an_empty_secret_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text("\n")
    assert "jwt_secret" in (await run(data=tmp_path)).complaint


async def test_a_port_that_is_taken_is_told_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = await run(data=tmp_path, PORT=str(port))
    assert str(port) in refused.complaint
    assert "PORT" in refused.complaint


async def test_an_address_that_is_none_of_ours_is_told_so(tmp_path: Path) -> None:
    refused = await run(data=tmp_path, HOST="192.0.2.1", JWT_SECRET=SECRET)
    assert "192.0.2.1" in refused.complaint


def public_pem() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem() -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def odd_curve_pem() -> str:
    key = ec.generate_private_key(ec.SECP521R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


HALVES: dict[str, tuple[dict[str, str], str]] = {
    "others can reach it and no key": ({"HOST": "0.0.0.0"}, "JWT_SECRET"),
    "others can reach it over IPv6 and no key": ({"HOST": "::"}, "HOST"),
    "an empty secret is none": ({"HOST": "0.0.0.0", "JWT_SECRET": ""}, "HOST"),
    "two keys": ({"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": public_pem()}, "JWT_PUBLIC_KEY"),
    "a short secret": ({"JWT_SECRET": "hunter2"}, "JWT_SECRET"),
    "a key that is none": ({"JWT_PUBLIC_KEY": "hunter2"}, "JWT_PUBLIC_KEY"),
    "a key that is cut short": ({"JWT_PUBLIC_KEY": public_pem()[:60]}, "JWT_PUBLIC_KEY"),
    "a private key": ({"JWT_PUBLIC_KEY": private_pem()}, "JWT_PUBLIC_KEY"),
    "a curve that no algorithm takes": ({"JWT_PUBLIC_KEY": odd_curve_pem()}, "JWT_PUBLIC_KEY"),
    "a port that is no number": ({"PORT": "abc"}, "PORT"),
    "a port below all": ({"PORT": "-1"}, "PORT"),
    "a port beyond all": ({"PORT": "65536"}, "PORT"),
    "a level that there is not": ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
    "a format that there is not": ({"LOG_FORMAT": "xml"}, "LOG_FORMAT"),
    "Redis without MongoDB": (
        {"REDIS_URL": "redis://:hunter2@127.0.0.1"},
        "REDIS_URL is set and MONGODB_URI is not",
    ),
    "a Redis that is something else": (
        {"REDIS_URL": "https://u:hunter2@127.0.0.1", "MONGODB_URI": "mongodb://127.0.0.1:1"},
        "REDIS_URL is no address of a Redis",
    ),
    "a Redis whose password was not encoded": (
        {"REDIS_URL": "redis://:hunter2/@127.0.0.1", "MONGODB_URI": "mongodb://127.0.0.1:1"},
        "REDIS_URL is no address of a Redis",
    ),
    "a Redis at a port that is no number": (
        {"REDIS_URL": "redis://u:hunter2@127.0.0.1:x", "MONGODB_URI": "mongodb://127.0.0.1:1"},
        "REDIS_URL is no address of a Redis",
    ),
    "a Redis with an option that there is not": (
        {"REDIS_URL": "redis://127.0.0.1?pass=hunter2", "MONGODB_URI": "mongodb://127.0.0.1:1"},
        "REDIS_URL is no address of a Redis",
    ),
    "a Sentinel without a service": (
        {
            "REDIS_URL": "redis+sentinel://u:hunter2@127.0.0.1",
            "MONGODB_URI": "mongodb://127.0.0.1:1",
        },
        "REDIS_URL is no address of a Redis",
    ),
    "a prefix that would decide the slot of all keys": ({"REDIS_PREFIX": "{gym}"}, "REDIS_PREFIX"),
    "a short secret of the bus": ({"BUS_SECRET": "hunter2"}, "BUS_SECRET"),
    "a MongoDB that is something else": (
        {"MONGODB_URI": "https://u:hunter2@127.0.0.1"},
        "MONGODB_URI",
    ),
    "a MongoDB whose password was not encoded": (
        {"MONGODB_URI": "mongodb://u:hunter2/@127.0.0.1"},
        "MONGODB_URI",
    ),
    "a MongoDB that is not there": (
        {"MONGODB_URI": "mongodb://u:hunter2@127.0.0.1:1/?serverSelectionTimeoutMS=300"},
        "MONGODB_URI",
    ),
    "a key set beside a secret": (
        {"JWT_JWKS_URL": "https://host.example/jwks", "JWT_SECRET": SECRET},
        "JWT_JWKS_URL",
    ),
    "a key set that others can change": ({"JWT_JWKS_URL": "http://host.example"}, "JWT_JWKS_URL"),
    "a key set with a password": (
        {"JWT_JWKS_URL": "https://ana:hunter2@host.example/"},
        "JWT_JWKS_URL",
    ),
    "a key in the place of a secret": ({"JWT_SECRET": private_pem()}, "JWT_SECRET"),
}


@pytest.mark.parametrize(("env", "name"), HALVES.values(), ids=HALVES.keys())
async def test_half_a_configuration_is_refused_by_the_variables_name(
    tmp_path: Path, env: dict[str, str], name: str
) -> None:
    data = tmp_path / "data"
    refused = await run(data=data, **env)
    assert name in refused.complaint
    assert "hunter2" not in refused.complaint
    assert not (data / "repsync.db").exists()


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"REDIS_URL": ""},
        {"MONGODB_URI": "mongodb://u:hunter2@127.0.0.1:1"},
        {"REDIS_URL": "redis://:hunter2@127.0.0.1:1"},
    ],
    ids=["neither", "an empty one", "no Redis", "no MongoDB"],
)
async def test_a_worker_without_both_databases_is_refused(
    tmp_path: Path, env: dict[str, str]
) -> None:
    refused = await run("worker", data=tmp_path / "data", **env)
    assert "REDIS_URL" in refused.complaint
    assert "MONGODB_URI" in refused.complaint
    assert "hunter2" not in refused.complaint
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("redis", "mongodb", "name"),
    [
        ("https://u:hunter2@127.0.0.1", "mongodb://127.0.0.1:1", "REDIS_URL"),
        ("redis://u:hunter2@127.0.0.1:1", "https://u:hunter2@127.0.0.1", "MONGODB_URI"),
        (
            "redis://127.0.0.1:1",
            "mongodb://u:hunter2@127.0.0.1:1/?serverSelectionTimeoutMS=300",
            "MONGODB_URI",
        ),
    ],
    ids=["a Redis that is something else", "a MongoDB that is something else", "no MongoDB there"],
)
async def test_a_worker_with_half_an_address_is_refused_by_the_variables_name(
    tmp_path: Path, redis: str, mongodb: str, name: str
) -> None:
    refused = await run("worker", data=tmp_path, REDIS_URL=redis, MONGODB_URI=mongodb)
    assert name in refused.complaint
    assert "hunter2" not in refused.complaint


async def test_a_host_that_others_can_reach_is_fine_with_a_secret(tmp_path: Path) -> None:
    async with Serving(tmp_path, {"HOST": "0.0.0.0", "JWT_SECRET": SECRET}) as server:
        token = jwt.encode({"sub": "ana", "exp": 2**33}, SECRET)
        assert (await welcome(server, token))["user"]["id"] == "ana"  # type: ignore[index]


def test_the_tests_leave_no_setting_of_this_machine_in_the_environment() -> None:
    assert not {"HOST", "PORT", "DATA_DIR", "JWT_SECRET"} & set(clean_env()), os.environ


# -- one person's data ----------------------------------------------------------------------------


async def test_erasing_has_to_be_meant(tmp_path: Path) -> None:
    outcome = await run("erase", "--user", "ana", data=tmp_path)
    assert "--yes" in outcome.complaint
    assert "--dry-run" in outcome.complaint


@pytest.mark.parametrize("command", [("export",), ("erase", "--yes"), ("erase", "--dry-run")])
async def test_where_there_are_no_data_nothing_is_exported_or_erased(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    outcome = await run(*command, "--user", "ana", data=tmp_path / "nowhere")
    assert "DATA_DIR" in outcome.complaint
    assert not (tmp_path / "nowhere").exists()


async def test_a_person_is_exported_and_erased_beside_a_server_that_runs(tmp_path: Path) -> None:
    async with Serving(tmp_path / "data", {"JWT_SECRET": SECRET}) as server:
        token = jwt.encode({"sub": "ana", "exp": 2**33, "iat": 1_700_000_000}, SECRET)
        ana = await EventClient(server.url, token).connect()
        await ana.do("workout:create", {"workout_id": "leg-day", "title": "Legs of ana"})
        file = tmp_path / "ana.json"
        written = await run("export", "--user", "ana", "--out", str(file), data=tmp_path / "data")
        assert (written.code, written.out) == (0, "")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (document,) = json.loads(file.read_text())["documents"]
        assert document["snapshot"]["title"] == "Legs of ana"
        erased = await run("erase", "--user", "ana", "--yes", data=tmp_path / "data")
        assert erased.code == 0, erased
        assert json.loads(erased.out)["documents_deleted"] == 1
        await ana.wait_until_gone()
        await ana.close()
        with pytest.raises(Refused) as refusal:
            await EventClient(server.url, token).connect()
        assert refusal.value.error["code"] == "forbidden"
        assert await server.terminate() == 0


# -- the demo -------------------------------------------------------------------------------------


async def test_the_demo_has_people_train_and_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = Serving(
        tmp_path / "data",
        {"TMPDIR": str(temporary)},
        program=("-m", "server", "demo", "--pace", "50"),
    )
    async with server:
        assert server.process is not None
        assert server.process.stdout is not None
        token = (await server.process.stdout.readline()).decode().split()[-1]
        operator = EventClient(server.url, token)
        await operator.connect()
        try:
            assert operator.welcome["user"]["role"] == "admin"
            await operator.do("subscribe", {"streams": ["system:health"]})
            await operator.next("system:health", lambda health: health["rooms"] >= 3)
        finally:
            await operator.close()
        assert await server.terminate() == 0
    assert not list(temporary.iterdir())
    assert not (tmp_path / "data").exists()
