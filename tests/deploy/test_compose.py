"""`deploy/`: what it starts exists, and is configured as this version reads it. Nothing is
started."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.__main__ import _parser
from server.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
HAPROXY = (DEPLOY / "haproxy.cfg").read_text()
SECRETS = dict.fromkeys(("JWT_SECRET", "BUS_SECRET"), "a secret of more than thirty-two bytes")
OF_THE_IMAGE = {"HOST", "PORT", "DATA_DIR"}

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "repsync"}
SERVERS = {name: service for name, service in OURS.items() if name.startswith("server-")}


def example() -> dict[str, str]:
    """What .env.example sets."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def substituted(text: str, env: dict[str, str]) -> str:
    """As compose does it, of which `${NAME:-default}` and `${NAME:?error}` are used here."""

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        if not env.get(name) and operator == ":?":
            raise KeyError(f"{name}: {rest}")
        return env.get(name) or rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


def environment(service: dict[str, Any], env: dict[str, str]) -> dict[str, str]:
    return {name: substituted(str(v), env) for name, v in service["environment"].items()}


def configured(
    monkeypatch: pytest.MonkeyPatch, service: dict[str, Any], env: dict[str, str]
) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment(service, env).items():
        monkeypatch.setenv(name, value)
    return Settings.from_env()


def test_there_are_two_servers_and_a_worker() -> None:
    assert {"server-1", "server-2"} == set(SERVERS)
    assert set(OURS) == {*SERVERS, "worker"}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_that_compose_sets_is_a_setting(name: str) -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert set(OURS[name]["environment"]) - known == set()


@pytest.mark.parametrize("name", OURS)
def test_with_the_secrets_filled_in_the_settings_hold_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(monkeypatch, OURS[name], {**example(), **SECRETS})
    assert settings.redis_url is not None
    assert settings.mongodb_uri is not None
    assert settings.bus_secret is not None
    assert not settings.embedded_worker or name == "worker"


def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**example(), "BUS_SECRET": SECRETS["BUS_SECRET"]}
    with pytest.raises(SettingsError, match="no key is configured"):
        configured(monkeypatch, SERVERS["server-1"], env)


def test_without_a_bus_secret_compose_says_what_is_missing() -> None:
    with pytest.raises(KeyError, match="BUS_SECRET"):
        environment(OURS["worker"], example())


def test_env_example_has_what_compose_asks_for_and_nothing_else() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert set(example()) == asked


def test_every_server_has_a_data_folder_of_its_own() -> None:
    volumes = [volume for server in SERVERS.values() for volume in server["volumes"]]
    folders = [volume.split(":") for volume in volumes]
    assert len({volume for volume, _ in folders}) == len(SERVERS)
    assert {volume for volume, _ in folders} <= set(COMPOSE["volumes"])
    for server in SERVERS.values():
        assert {path for _, path in folders} == {server["environment"]["DATA_DIR"]}


def test_the_commands_exist() -> None:
    entrypoint = yaml.safe_load(_instruction("ENTRYPOINT"))
    assert entrypoint == ["python", "-m", "server"]
    by_itself = yaml.safe_load(_instruction("CMD"))
    commands = [service.get("command", by_itself) for service in OURS.values()]
    assert sorted(_parser().parse_args(command).command for command in commands) == [
        "serve",
        "serve",
        "worker",
    ]


def test_the_image_has_what_a_server_needs_and_runs_it_as_nobody_special() -> None:
    copied = {
        shlex.split(line)[1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")
    } - {"--from=build", "--from=page"}
    assert copied == {"requirements.txt", "crdt", "handlers", "server", "dashboard"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in ignored
    assert "*" in ignored
    assert _instruction("USER") == "repsync"
    for name in OF_THE_IMAGE:
        assert re.search(rf"\b{name}=", DOCKERFILE)


def test_the_image_says_it_is_well_while_the_databases_are_away() -> None:
    # `GET /` asks for nothing. /ready would have all servers restarted because Redis is.
    _, _, program = yaml.safe_load(_instruction("    CMD"))
    compile(program, "HEALTHCHECK", "exec")
    assert "/ready" not in program
    assert "/health" not in program


def test_the_load_balancer_knows_every_server_by_its_port() -> None:
    assert os.path.basename(SERVICES["balancer"]["volumes"][0].split(":")[0]) == "haproxy.cfg"
    for backend in ("ready", "listening"):
        section = HAPROXY.split(f"\nbackend {backend}\n")[1].split("\nbackend ")[0]
        servers = dict(re.findall(r"^  server (\S+) (\S+)", section, re.MULTILINE))
        ports = {name: SERVERS[name]["environment"]["PORT"] for name in SERVERS}
        assert servers == {name: f"{name}:{port}" for name, port in ports.items()}
        assert len(set(re.findall(r"cookie (s\d+)$", section, re.MULTILINE))) == len(SERVERS)
        assert ("uri /ready " in section) == (backend == "ready")


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_a_server_has_the_time_to_end() -> None:
    # Appends have 5 s to become durable, clients 2 s to take their leave, HTTP 5 s.
    for service in OURS.values():
        assert int(service["stop_grace_period"].removesuffix("s")) >= 20


def _instruction(name: str) -> str:
    """The last line of the Dockerfile that begins like this, without its name."""
    lines = [line for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]
    return lines[-1].removeprefix(f"{name} ")
