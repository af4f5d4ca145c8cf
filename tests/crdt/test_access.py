"""The table at the top of crdt/access.py, cell by cell."""

from __future__ import annotations

from typing import Any

import pytest

from crdt.access import Member, Right, is_visible, rights_of
from crdt.ids import DocKind, UserId
from tests.helpers.rooms import user

READ, WRITE, RUN, MANAGE = Right.READ, Right.WRITE, Right.RUN, Right.MANAGE

TABLE = [
    (DocKind.WORKOUT, "owner", READ | WRITE | RUN | MANAGE),
    (DocKind.WORKOUT, "coach", READ | WRITE | RUN),
    (DocKind.WORKOUT, "participant", READ | WRITE),
    (DocKind.WORKOUT, "spectator", READ),
    (DocKind.TEMPLATE, "owner", READ | WRITE | MANAGE),
    (DocKind.TEMPLATE, "editor", READ | WRITE),
    (DocKind.TEMPLATE, "viewer", READ),
    (DocKind.WORKOUT, "editor", Right.NONE),
    (DocKind.TEMPLATE, "coach", Right.NONE),
    (DocKind.WORKOUT, "", Right.NONE),
]


def rights(kind: DocKind, role: str | None, friends: set[str] | None = None, **meta: Any) -> Right:
    members = {} if role is None else {UserId("ben"): Member(UserId("ben"), role, "Ben")}
    ben = user("ben", friends=frozenset(friends or ()))
    return rights_of(ben, kind, {"owner_id": "ana", **meta}, members)


@pytest.mark.parametrize(("kind", "role", "expected"), TABLE)
def test_a_role_has_the_rights_of_the_table(kind: DocKind, role: str, expected: Right) -> None:
    assert rights(kind, role) == expected


@pytest.mark.parametrize("kind", list(DocKind))
@pytest.mark.parametrize(
    ("visibility", "stranger", "friend"),
    [
        ("private", Right.NONE, Right.NONE),
        ("friends", Right.NONE, READ),
        ("public", READ, READ),
        (None, Right.NONE, Right.NONE),
        ({"deep": 1}, Right.NONE, Right.NONE),
    ],
)
def test_who_is_no_member_reads_what_the_visibility_shows(
    kind: DocKind, visibility: Any, stranger: Right, friend: Right
) -> None:
    assert rights(kind, None, visibility=visibility) == stranger
    assert rights(kind, None, {"ana"}, visibility=visibility) == friend


def test_a_member_is_not_lowered_by_the_visibility() -> None:
    assert WRITE in rights(DocKind.WORKOUT, "participant", visibility="private")


def test_the_friend_of_a_friend_is_a_stranger() -> None:
    assert rights(DocKind.WORKOUT, None, {"cara"}, visibility="friends") == Right.NONE


def test_a_document_without_meta_is_shown_to_nobody() -> None:
    assert not is_visible({}, {"ana"})
    assert not is_visible({"visibility": "friends"}, {"None"})


def test_nobody_but_an_admin_of_the_token_gains_by_the_tokens_role() -> None:
    trainer = user("ben", role="trainer")
    assert rights_of(trainer, DocKind.WORKOUT, {"visibility": "private"}, {}) == Right.NONE
