"""Many who come at once pass a few in each turn of the loop."""

from __future__ import annotations

import asyncio

from server.transport.turnstile import Turnstile


async def turns_until(*, done: list[int], count: int) -> list[int]:
    """How many were through after each turn of the loop, until all are."""
    through = []
    while len(done) < count:
        await asyncio.sleep(0)
        through.append(len(done))
    return through


async def pass_through(turnstile: Turnstile, number: int, done: list[int]) -> None:
    await turnstile.passing()
    done.append(number)


async def test_who_comes_alone_does_not_wait() -> None:
    turnstile = Turnstile(1)
    for _ in range(3):
        passing = asyncio.ensure_future(turnstile.passing())
        await asyncio.sleep(0)
        assert passing.done()
        await asyncio.sleep(0)


async def test_of_many_some_pass_in_each_turn_in_the_order_of_their_coming() -> None:
    turnstile, done = Turnstile(10), list[int]()
    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(pass_through(turnstile, number, done))
        through = await turns_until(done=done, count=100)
    assert done == list(range(100))
    steps = [after - before for before, after in zip([0, *through], through, strict=False)]
    assert max(steps) == 10


async def test_who_gives_up_is_passed_over() -> None:
    turnstile, done = Turnstile(2), list[int]()
    waiting = [asyncio.ensure_future(pass_through(turnstile, n, done)) for n in range(9)]
    await asyncio.sleep(0)
    for number in (3, 4, 8):
        waiting[number].cancel()
    await asyncio.wait(waiting)
    assert done == [0, 1, 2, 5, 6, 7]
