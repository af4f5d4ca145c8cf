"""What is shipped beside the code says what the code says: settings, versions, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import VERSION
from server.__main__ import _parser
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MAKEFILE = (ROOT / "Makefile").read_text()
README = (ROOT / "README.md").read_text()
CI_RUN = (ROOT / ".ci/run").read_text()
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
COMMANDS = "\n".join(step["run"] for step in STEPS if "run" in step)
DEV: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.dev.yaml").read_text())
YAML_FILES = [
    path
    for folder in (DEPLOY, ROOT / ".github")
    for path in (*folder.rglob("*.yaml"), *folder.rglob("*.yml"))
]
EXAMPLE = (ROOT / ".env.example").read_text()
GIVEN = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def fresh(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Settings:
    """Settings with these variables and no others."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return Settings.from_env()


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_file_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


# -- settings -------------------------------------------------------------------------------------


def test_env_example_has_every_setting_once_and_no_other() -> None:
    names = re.findall(r"^#([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_env_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh(monkeypatch, GIVEN) == fresh(monkeypatch, {})


def test_env_example_sets_nothing_as_it_is() -> None:
    assert all(line.startswith("#") for line in EXAMPLE.splitlines() if line)


# -- for development ------------------------------------------------------------------------------


def test_the_development_server_is_configured_as_this_version_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = {name: str(value) for name, value in DEV["services"]["server"]["environment"].items()}
    assert env.keys() <= {name.upper() for name in Settings.model_fields}
    settings = fresh(monkeypatch, env)
    assert settings.redis_url is not None
    assert settings.mongodb_uri is not None


def test_for_development_nothing_is_reached_from_elsewhere() -> None:
    ports = [port for service in DEV["services"].values() for port in service.get("ports", ())]
    assert {port.rsplit(":", 1)[1] for port in ports} == {"8000", "6379", "27017"}
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_for_development_the_code_of_this_folder_runs() -> None:
    server = DEV["services"]["server"]
    mounted = [volume.split(":")[0] for volume in server["volumes"] if volume.startswith("..")]
    watched = [rule["path"] for rule in server["develop"]["watch"]]
    assert {"../crdt", "../handlers", "../server"} <= set(mounted) <= set(watched)
    assert all((DEPLOY / path).exists() for path in (*mounted, *watched))
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).exists()


# -- versions -------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert VERSION == project["version"] == released[0]
    as_numbers = [tuple(map(int, version.split("."))) for version in released]
    assert as_numbers == sorted(as_numbers, reverse=True)


def test_the_command_line_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"RepSync {VERSION}\n"


def test_the_changelog_is_one_that_tools_can_read() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    groups = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    body = lines[lines.index(releases[0]) :]
    assert all(not line or line.startswith(("## ", "### ", "- ")) for line in body)


# -- commands -------------------------------------------------------------------------------------


def targets(text: str) -> set[str]:
    """What `make` is asked for, one command a line."""
    return set(re.findall(r"^ *make ([a-z]+)", text, re.MULTILINE))


def test_ci_runs_what_the_readme_promises() -> None:
    assert targets(README) <= targets(COMMANDS) | targets(CI_RUN)
    assert targets(README) >= {"run", "test"}
    assert any(step.get("run") == ".ci/run" for step in STEPS)


def test_every_target_that_is_named_is_there() -> None:
    known = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *DEPLOY.glob("*.md")]
    named = {
        target
        for page in pages
        for target in re.findall(r"(?:^ *|`)make ([a-z]+)", page.read_text(), re.MULTILINE)
    }
    assert named | targets(COMMANDS) | targets(CI_RUN) <= known


def test_ci_runs_on_every_push_and_may_only_read() -> None:
    triggers = WORKFLOW[True]  # YAML 1.1 takes `on` for a truth
    assert triggers.keys() == {"push", "pull_request"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for step in STEPS:
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    assert all("timeout-minutes" in job for job in WORKFLOW["jobs"].values())


def test_ci_tests_the_pythons_that_are_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={versions[0]}"


def test_every_file_that_ci_names_is_there() -> None:
    named = set(re.findall(r"(?:deploy/|\.ci/)[\w./-]+", COMMANDS))
    assert {"deploy/Dockerfile", "deploy/compose.yaml", "deploy/compose.dev.yaml"} <= named
    for path in named:
        assert (ROOT / path.rstrip(":")).exists(), path
