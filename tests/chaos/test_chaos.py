"""Instances, Redis and MongoDB die, freeze and lose each other under load; what was acked stays.

`CHAOS_S` says for how long (`make chaos`: half an hour), `CHAOS_SEED` repeats the choices of an
earlier run; the seed and what was done are printed when it fails. The short run of `make test`
makes the same choices each time, longer ones look for what is not known. A run has several rounds:
in each people train while the nemesis is at work, then everything is healed, and the checker looks.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.checker import Cast
from tests.chaos.nemesis import Nemesis
from tests.chaos.stage import ROOMY, Here, counted, play, prepared
from tests.helpers.clusters import IS_SERVED, running_cluster

SIZE = 3 if IS_SERVED else 1
CHAOS_S = float(os.environ.get("CHAOS_S", "25"))
ROUND_S = 40.0
ROUNDS_OF_A_CLUSTER = 10
"""Then it goes on with a new one: nx-27017 looks through all operations that were ever answered
whenever some are added, which after half an hour is all that it does."""
SHORT_SEED = 31

pytestmark = [pytest.mark.system, pytest.mark.timeout(3 * CHAOS_S + 300)]


def chosen_seed() -> int:
    if given := os.environ.get("CHAOS_SEED"):
        return int(given)
    return random.SystemRandom().randrange(2**32) if "CHAOS_S" in os.environ else SHORT_SEED


async def test_what_was_acked_stays_whatever_dies(tmp_path: Path) -> None:
    seed = chosen_seed()
    chance = random.Random(seed)
    rounds = max(1, round(CHAOS_S / ROUND_S))
    played: list[tuple[Here, Cast]] = []
    faults = 0
    for first in range(0, rounds, ROUNDS_OF_A_CLUSTER):
        async with running_cluster(
            tmp_path / f"from-{first}", size=SIZE, has_redis=SIZE > 1, seed=seed, env=ROOMY
        ) as cluster:
            for number in range(first, min(first + ROUNDS_OF_A_CLUSTER, rounds)):
                world = Here(cluster, chance.randrange(2**32))
                nemesis = Nemesis(cluster, chance.randrange(2**32))
                nemesis.on_emptying = world.lose_books
                cast = await prepared(world, number)
                try:
                    await play(world, cast, nemesis.run(CHAOS_S / rounds))
                except BaseException:
                    print(f"CHAOS_SEED={seed}, round {number + 1} of {rounds}")
                    print("\n".join(nemesis.history))
                    for instance in cluster.instances:
                        print(f"{instance.name}: {cluster.log_of(instance)[-20_000:]}")
                    raise
                played.append((world, cast))
                faults += nemesis.count
    totals = counted(played)
    print(f"CHAOS_SEED={seed}, {faults} faults, {dict(totals)}")
    assert faults > 0
    assert totals["acked"] > 0
    assert totals["edits acked"] > 0
