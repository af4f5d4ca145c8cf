"""What a server shows in `/metrics`, without clients and without its databases."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.app import PARTS, create_app
from server.settings import Settings

ALONE, CLUSTER = "alone", "cluster"
_SETTINGS = {
    ALONE: {"jwt_secret": "a secret of more than thirty-two bytes"},
    CLUSTER: {
        "jwt_jwks_url": "http://127.0.0.1:1/keys",
        "redis_url": "redis://127.0.0.1:1",
        "mongodb_uri": "mongodb://127.0.0.1:1/repsync",
        "alert_webhook_url": "http://127.0.0.1:1/alerts",
        "alert_webhook_secret": "a secret of more than thirty-two bytes",
    },
}


async def families_of(folder: Path, kind: str) -> dict[str, Metric]:
    """Each metric by its name, a counter's with `_total`, as Prometheus's own parser reads it.

    Args:
        kind: `ALONE`, with SQLite, or `CLUSTER`, one of several instances, with a key set.
    """
    settings = Settings.model_validate({"data_dir": folder, **_SETTINGS[kind]})
    parts = create_app(settings)[PARTS]
    try:
        text = parts.metrics.render().decode()
    finally:
        await parts.store.close()
    return {
        family.name + "_total" * (family.type == "counter"): family
        for family in text_string_to_metric_families(text)
    }
