"""`deploy/prometheus/` and `deploy/grafana/`: what they ask for is shown, and explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.helpers.exposed import ALONE, CLUSTER, families_of

ROW = re.compile(r"^\| `((?:repsync|process)_\w+)` \| \w+ \|([^|]*)\|", re.MULTILINE)

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = (ROOT / "docs/operations.md").read_text()

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
GROUPS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())[
    "groups"
]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/repsync.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DATASOURCE: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
)["datasources"][0]

OF_PROMETHEUS = {"up": {"instance", "job"}, "ALERTS": {"alertstate", "job"}}
"""Which of its own series are asked for, by which labels."""
GIVEN = {"instance", "job"}
"""Labels that Prometheus gives to what it reads."""


def expressions() -> dict[str, str]:
    """Every expression of the rules and the dashboard, by where it stands."""
    found = {alert: rule["expr"] for alert, rule in ALERTS.items()}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"{panel['id']}{target['refId']} {panel['title']}"] = filled_in(target["expr"])
    return found


def filled_in(expression: str) -> str:
    """As Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each series that is asked for, with the labels that it is chosen by."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert found
    return iter(found)


def labels_by_metric() -> dict[str, set[str]]:
    """Of each metric in docs/operations.md, which a test holds against the server."""
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(OPERATIONS)}


def metric_of(series: str, families: dict[str, Any]) -> str | None:
    """The metric that a series belongs to: a histogram has several."""
    for name in (series, re.sub(r"_(bucket|sum|count)$", "", series)):
        if name in families and (name == series) != (families[name].type == "histogram"):
            return name
    return None


@pytest.mark.parametrize("where", expressions())
async def test_every_expression_asks_for_what_a_server_shows(where: str, tmp_path: Path) -> None:
    families = await families_of(tmp_path, CLUSTER)
    labels = labels_by_metric()
    for series, chosen_by in selectors(expressions()[where]):
        if series in OF_PROMETHEUS:
            assert chosen_by <= OF_PROMETHEUS[series]
            continue
        metric = metric_of(series, families)
        assert metric is not None, f"{series} is shown by no server"
        assert chosen_by <= labels[metric] | GIVEN


async def test_alerts_of_a_server_alone_are_about_what_it_shows(tmp_path: Path) -> None:
    families = await families_of(tmp_path, ALONE)
    shown = {*families, "repsync_jwks_fetches_total"}  # with JWT_JWKS_URL
    alone, several = GROUPS
    assert several["name"] == "repsync-cluster"
    for rule in alone["rules"]:
        for series, _ in selectors(rule["expr"]):
            name = re.sub(r"_(bucket|sum|count)$", "", series)
            assert name in shown or series in OF_PROMETHEUS


async def test_every_metric_is_on_the_dashboard_or_in_an_alert(tmp_path: Path) -> None:
    families = await families_of(tmp_path, CLUSTER)
    asked = {
        metric_of(series, families)
        for expression in expressions().values()
        for series, _ in selectors(expression)
    }
    assert families.keys() - asked == {"repsync_build_info", "repsync_revocations"}


def test_every_alert_is_explained_where_it_points_to() -> None:
    section = OPERATIONS.split("\n## Alert rules\n")[1].split("\n## ")[0]
    explained = re.findall(r"^\| `(RepSync\w+)` \|", section, re.MULTILINE)
    assert sorted(explained) == sorted(ALERTS)
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^## (.*)$", OPERATIONS, re.MULTILINE)
    }
    for rule in ALERTS.values():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (ROOT / page).read_text() == OPERATIONS
        assert anchor in headings
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_prometheus_asks_every_server_and_reads_the_rules() -> None:
    job, _ = PROMETHEUS["scrape_configs"]
    (targets,) = [config["targets"] for config in job["static_configs"]]
    servers = [name for name in COMPOSE["services"] if name.startswith("server-")]
    assert targets == [
        f"{name}:{COMPOSE['services'][name]['environment']['PORT']}" for name in servers
    ]
    assert job["job_name"] == "repsync"
    for rules in PROMETHEUS["rule_files"]:
        assert (DEPLOY / "prometheus" / rules).exists()


def test_prometheus_asks_every_worker_where_it_listens() -> None:
    _, job = PROMETHEUS["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["worker"]
    worker, prometheus = COMPOSE["services"]["worker"], COMPOSE["services"]["prometheus"]
    assert found["port"] == worker["environment"]["WORKER_METRICS_PORT"]
    assert set(worker["networks"]) & set(prometheus["networks"])


def test_the_panels_ask_the_datasource_that_is_provisioned() -> None:
    assert {panel["datasource"]["uid"] for panel in PANELS} == {DATASOURCE["uid"]}
    assert DATASOURCE["url"] == "http://prometheus:9090"
    interval = PROMETHEUS["global"]["scrape_interval"]
    assert DATASOURCE["jsonData"]["timeInterval"] == interval
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_compose_puts_the_files_where_prometheus_and_grafana_look() -> None:
    services = COMPOSE["services"]
    mounted = {
        path: DEPLOY / source
        for name in ("prometheus", "grafana")
        for source, path, *_ in (volume.split(":") for volume in services[name]["volumes"])
        if source.startswith("./")
    }
    assert (mounted["/etc/prometheus"] / "prometheus.yml").exists()
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/repsync.yml").read_text())
    (path,) = [one["options"]["path"] for one in provider["providers"]]
    assert list(mounted[path].glob("*.json"))
    assert mounted["/etc/grafana/provisioning"] == DEPLOY / "grafana/provisioning"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounted[str(Path(home).parent)] / Path(home).name).exists()


def test_monitoring_starts_only_when_asked_for_and_is_seen_from_this_machine_alone() -> None:
    for name in ("prometheus", "grafana"):
        service = COMPOSE["services"][name]
        assert service["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
