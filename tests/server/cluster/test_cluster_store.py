"""The store that instances share: what every store promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from crdt.hub import RoomHub
from crdt.ids import UserId
from crdt.revocations import Revocation
from server.cluster.connection import connect
from server.cluster.envelope import Sealer
from server.cluster.store import ClusterStore
from server.storage.mongo import MongoStore
from server.storage.spool import Spool
from tests.contracts.update_store import StoreContract
from tests.helpers.rooms import FakeClock, RecordingOutlet

pytestmark = pytest.mark.timeout(60)


class Nobody:
    """An instance without clients."""

    def apply_revocation(self, revocation: Revocation) -> None:
        pass

    def reload_revocations(self) -> None:
        pass

    def tell_user_here(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        pass


@pytest.fixture
async def store(tmp_path: Path, redis_server: str, mongo_uri: str) -> AsyncIterator[ClusterStore]:
    shared = ClusterStore(
        connect(redis_server),
        MongoStore(mongo_uri),
        Spool(tmp_path),
        Sealer(None),
        prefix=f"t{uuid4().hex[:8]}",
        instance=uuid4().hex[:12],
    )
    await shared.open()
    hub = RoomHub(shared, RecordingOutlet(), FakeClock(), shared=shared)
    await shared.begin(hub, Nobody())
    yield shared
    await shared.close()


class TestClusterStore(StoreContract):
    counts_updates = False
