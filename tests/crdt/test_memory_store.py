"""The store in dictionaries keeps what every store promises."""

from __future__ import annotations

import pytest

from crdt.memory import MemoryStore
from tests.contracts.update_store import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    def test_it_promises_no_more_than_memory(self, store: MemoryStore) -> None:
        assert store.durability == "memory"
