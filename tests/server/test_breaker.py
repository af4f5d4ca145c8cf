"""The circuit breaker: when it opens, who may try, and what closes it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from server.breaker import Attempt, Breaker, BreakerOpen, BreakerState
from tests.helpers.tickers import Ticker

FIRST_S, LONGEST_S, THRESHOLD = 1.0, 8.0, 3


def make(ticker: Ticker, threshold: int = THRESHOLD) -> Breaker:
    return Breaker(
        "the database",
        threshold=threshold,
        first_open_s=FIRST_S,
        longest_open_s=LONGEST_S,
        now=ticker,
    )


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with contextlib.suppress(OSError), breaker.attempt():
            raise OSError


def succeed(breaker: Breaker) -> None:
    with breaker.attempt():
        pass


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = make(Ticker())
    fail(breaker, THRESHOLD - 1)
    succeed(breaker)
    fail(breaker, THRESHOLD - 1)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    assert breaker.opened == 1
    with pytest.raises(BreakerOpen) as refused:
        breaker.attempt()
    assert refused.value.retry_in_s == FIRST_S


def test_when_its_time_is_over_one_may_try_and_closes_it() -> None:
    ticker = Ticker()
    breaker = make(ticker)
    fail(breaker, THRESHOLD)
    ticker.advance(FIRST_S)
    assert breaker.state == "half_open"
    with breaker.attempt():
        with pytest.raises(BreakerOpen):
            breaker.attempt()
        assert breaker.state == "half_open"
    assert breaker.state == "closed"
    assert breaker.retry_in_s == 0


def test_each_attempt_that_fails_keeps_it_open_for_longer() -> None:
    ticker = Ticker()
    breaker = make(ticker)
    fail(breaker, THRESHOLD)
    waits = []
    for _ in range(6):
        waits.append(breaker.retry_in_s)
        ticker.advance(breaker.retry_in_s)
        fail(breaker)
    assert waits == [1, 2, 4, 8, 8, 8]
    assert breaker.opened == 1
    ticker.advance(LONGEST_S)
    succeed(breaker)
    fail(breaker, THRESHOLD)
    assert breaker.retry_in_s == FIRST_S


async def test_a_cancelled_attempt_leaves_its_place_to_the_next() -> None:
    ticker = Ticker()
    breaker = make(ticker)
    fail(breaker, THRESHOLD)
    ticker.advance(FIRST_S)

    async def wait() -> None:
        with breaker.attempt():
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    with pytest.raises(BreakerOpen):
        breaker.attempt()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    succeed(breaker)
    assert breaker.state == "closed"


def test_an_error_that_says_nothing_counts_for_nothing() -> None:
    breaker = make(Ticker(), threshold=1)
    with contextlib.suppress(ValueError), breaker.attempt(lambda exc: isinstance(exc, OSError)):
        raise ValueError
    assert breaker.state == "closed"


def test_what_was_begun_before_it_opened_does_not_close_it() -> None:
    breaker = make(Ticker())
    with breaker.attempt():
        fail(breaker, THRESHOLD)
    assert breaker.state == "open"


def test_many_that_fail_at_one_moment_do_not_open_it_but_what_goes_on_does() -> None:
    ticker = Ticker()
    breaker = Breaker(
        "it", threshold=3, least_s=1.0, first_open_s=1.0, longest_open_s=8.0, now=ticker
    )
    fail(breaker, 10)
    assert breaker.state == "closed"
    ticker.advance(0.5)
    succeed(breaker)
    ticker.advance(0.6)
    fail(breaker, 10)
    assert breaker.state == "closed"
    ticker.advance(1.0)
    fail(breaker)
    assert breaker.state == "open"


def test_those_that_have_waited_together_open_it_at_once() -> None:
    ticker = Ticker()
    breaker = Breaker(
        "it", threshold=3, least_s=1.0, first_open_s=1.0, longest_open_s=8.0, now=ticker
    )
    waiting = [breaker.attempt() for _ in range(3)]
    ticker.advance(5.0)
    for attempt in waiting:
        assert breaker.state == "closed"
        with contextlib.suppress(OSError), attempt:
            raise OSError
    assert breaker.state == "open"


def test_who_only_looks_is_always_let_in_and_closes_it_but_never_opens_it() -> None:
    breaker = make(Ticker())
    for _ in range(2 * THRESHOLD):
        with contextlib.suppress(OSError), breaker.look():
            raise OSError
    assert breaker.state == "closed"
    fail(breaker, THRESHOLD)
    with contextlib.suppress(OSError), breaker.look():
        raise OSError
    assert breaker.state == "open"
    with breaker.look():
        pass
    assert breaker.state == "closed"


class BreakerMachine(RuleBasedStateMachine):
    """Callers come, are let in or not, and end somehow, in any order."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.ticker = Ticker()
        self.breaker = make(self.ticker)
        self.running: dict[Attempt, BreakerState] = {}
        """Who is trying, and what the breaker was when they began."""

    @rule(target=attempts)
    def begin(self) -> Attempt | None:
        before = self.breaker.state
        try:
            attempt = self.breaker.attempt()
        except BreakerOpen as exc:
            retry_in_s = exc.retry_in_s
        else:
            assert before != BreakerState.OPEN
            self.running[attempt] = before
            return attempt
        assert before != BreakerState.CLOSED
        assert 0 < retry_in_s <= LONGEST_S
        return None

    @rule(attempt=consumes(attempts), outcome=st.sampled_from(["well", "failed", "cancelled"]))
    def end(self, attempt: Attempt | None, outcome: str) -> None:
        if attempt is None:
            return
        began = self.running.pop(attempt)
        before, is_of_now = self.breaker.state, attempt.turn == self.breaker._turn
        with contextlib.suppress(OSError, asyncio.CancelledError), attempt:
            if outcome == "failed":
                raise OSError
            if outcome == "cancelled":
                raise asyncio.CancelledError
        if not is_of_now or outcome == "cancelled":
            assert self.breaker.state == before
        elif began == BreakerState.HALF_OPEN:
            wanted = BreakerState.CLOSED if outcome == "well" else BreakerState.OPEN
            assert self.breaker.state == wanted

    @rule()
    def look(self) -> None:
        with self.breaker.look():
            pass
        assert self.breaker.state == BreakerState.CLOSED

    @rule(seconds=st.floats(0, 2 * LONGEST_S))
    def wait(self, seconds: float) -> None:
        self.ticker.advance(seconds)

    @invariant()
    def one_at_most_tries_a_breaker_that_is_half_open(self) -> None:
        turn = self.breaker._turn
        trying = [
            attempt
            for attempt, began in self.running.items()
            if began == BreakerState.HALF_OPEN and attempt.turn == turn
        ]
        assert len(trying) <= 1

    @invariant()
    def it_never_stays_shut_for_longer_than_the_longest_time(self) -> None:
        assert self.breaker.retry_in_s <= LONGEST_S

    def teardown(self) -> None:
        for attempt in self.running:
            with contextlib.suppress(asyncio.CancelledError), attempt:
                raise asyncio.CancelledError
        self.ticker.advance(LONGEST_S)
        succeed(self.breaker)
        assert self.breaker.state == BreakerState.CLOSED


TestBreaker = BreakerMachine.TestCase
