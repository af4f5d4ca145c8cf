"""The store in MongoDB: what every store promises, and what only a server far away can do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server.storage.mongo import MongoStore
from tests.contracts.update_store import StoreContract


async def opened(uri: str) -> MongoStore:
    store = MongoStore(uri)
    await store.open()
    return store


@pytest.fixture
async def store(mongo_uri: str) -> AsyncIterator[MongoStore]:
    store = await opened(mongo_uri)
    yield store
    await store.close()


class TestMongoStore(StoreContract):
    pass
