"""One server for each module of hostile inputs: what one input breaks, the next one finds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.hostile.stage import Stage, opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with opened(tmp_path_factory.mktemp("hostile")) as stage:
        yield stage
        # Degraded is what a busy machine makes of it.
        assert (await stage.health())["status"] in ("healthy", "degraded")
        stage.log_has_no_error()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The server, its clients and the tests of a module share one loop."""
    for item in items:
        if item.path.parent.name == "hostile":
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)
            item.add_marker(pytest.mark.system)
