"""Which tokens a revocation refuses, and until when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import UserId
from crdt.revocations import Revocation, RevocationList, TokenFacts

ANA = UserId("ana")
NOW_MS = 1_000
LATER_MS = 5_000


def facts(user_id: str = "ana", **changes: Any) -> TokenFacts:
    return TokenFacts(UserId(user_id), **changes)


def listed(*revocations: Revocation) -> RevocationList:
    made = RevocationList()
    for revocation in revocations:
        made.add(revocation, NOW_MS)
    return made


@pytest.mark.parametrize(
    ("token", "is_refused"),
    [
        (facts(token_id="t1"), True),
        (facts("ben", token_id="t1"), True),
        (facts(token_id="t2"), False),
        (facts(token_id="T1"), False),
        (facts(), False),
        (facts("t1"), False),
    ],
)
def test_a_token_is_refused_by_its_id_alone(token: TokenFacts, is_refused: bool) -> None:
    assert listed(Revocation("token", "t1", LATER_MS)).refuses(token, NOW_MS) is is_refused


@pytest.mark.parametrize(
    ("token", "is_refused"),
    [
        (facts(issued_at_ms=0), True),
        (facts(issued_at_ms=NOW_MS), True),
        (facts(issued_at_ms=NOW_MS + 1), False),
        (facts(), True),
        (facts(token_id="t1"), True),
        (facts("ben"), False),
        (facts("ben", token_id="ana"), False),
    ],
)
def test_a_users_tokens_are_refused_up_to_when_they_were_issued(
    token: TokenFacts, is_refused: bool
) -> None:
    revoked = listed(Revocation("user", "ana", LATER_MS, NOW_MS))
    assert revoked.refuses(token, NOW_MS) is is_refused


def test_a_revocation_has_an_end() -> None:
    revoked = listed(Revocation("token", "t1", LATER_MS), Revocation("user", "ben", LATER_MS, 1))
    for token in (facts(token_id="t1"), facts("ben")):
        assert revoked.refuses(token, LATER_MS - 1)
        assert not revoked.refuses(token, LATER_MS)


def test_what_was_revoked_twice_stays_so_until_the_later_end() -> None:
    for order in (1, -1):
        twice = [Revocation("user", "ana", LATER_MS, 10), Revocation("user", "ana", 2_000, 20)]
        revoked = listed(*twice[::order])
        assert len(revoked) == 1
        assert revoked.refuses(facts(issued_at_ms=20), LATER_MS - 1)
        assert not revoked.refuses(facts(issued_at_ms=21), NOW_MS)


def test_what_has_ended_takes_no_room() -> None:
    revoked = listed(*(Revocation("token", f"t{number}", 2_000) for number in range(100)))
    revoked.add(Revocation("token", "t0", 9_000), 1_500)
    revoked.add(Revocation("token", "new", 9_000), 2_000)
    assert len(revoked) == 2
    assert revoked.refuses(facts(token_id="t0"), 2_000)


names = st.sampled_from(["a", "b"])
times = st.integers(0, 20)
revocations = st.builds(Revocation, st.sampled_from(["user", "token"]), names, times, times)
tokens = st.builds(TokenFacts, names.map(UserId), st.none() | names, st.none() | st.integers(0, 20))


@given(st.lists(st.tuples(revocations, times), max_size=12), tokens)
def test_a_list_refuses_what_any_of_its_revocations_would(
    added: list[tuple[Revocation, int]], token: TokenFacts
) -> None:
    """One after the other, as time goes on; of the same name, the latest of each time counts."""
    revoked, now_ms = RevocationList(), 0
    merged: dict[tuple[str, str], Revocation] = {}
    for revocation, passed_ms in added:
        now_ms += passed_ms
        revoked.add(revocation, now_ms)
        name = (revocation.kind, revocation.id)
        known = merged.get(name)
        is_known = known is not None and known.until_ms > now_ms - passed_ms
        merged[name] = revocation.merged(known) if known and is_known else revocation
        expected = any(r.covers(token) and r.until_ms > now_ms for r in merged.values())
        assert revoked.refuses(token, now_ms) is expected
