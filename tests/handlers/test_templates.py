"""Templates: making, reading, sharing."""

from __future__ import annotations

from typing import Any

import pytest

from crdt import ids
from crdt.ids import ConnectionId
from tests.helpers.rooms import Desk

PUSH = ids.template("push")


@pytest.fixture
async def desk() -> Desk:
    """A desk with ana's template `push`."""
    desk = Desk()
    await desk.do("ana", "template:create", template_id="push", title="Push")
    return desk


async def share(desk: Desk, user_id: str = "ben", role: str = "editor") -> Any:
    data = {"template_id": "push", "user_id": user_id, "role": role}
    return await desk.do("ana", "template:share", **data)


async def update(desk: Desk, who: str, **meta: Any) -> Any:
    return await desk.ask(who, "template:update_meta", {"template_id": "push", "meta": meta})


async def test_a_new_template_is_empty_and_its_owners(desk: Desk) -> None:
    data = {"title": "Pull", "goal": "strength"}
    made = (await desk.do("ana", "template:create", **data))["template"]
    assert (made["title"], made["goal"], made["owner_id"]) == ("Pull", "strength", "ana")
    assert (made["exercises"], made["notes"], made["visibility"]) == ([], "", "private")
    got = await desk.do("ana", "template:get", template_id=made["id"])
    assert got["template"] == made


async def test_an_id_that_is_taken_is_a_conflict(desk: Desk) -> None:
    data = {"template_id": "push", "title": "Mine"}
    assert (await desk.refused("ben", "template:create", **data))["code"] == "conflict"


async def test_a_workout_and_a_template_may_have_one_id(desk: Desk) -> None:
    assert await desk.workout(workout_id="push") == "push"


async def test_a_list_shows_ones_own_and_what_was_shared(desk: Desk) -> None:
    await share(desk)
    [listed] = (await desk.do("ben", "template:list"))["templates"]
    assert listed == {
        "id": "push",
        "title": "Push",
        "visibility": "private",
        "owner_id": "ana",
        "role": "editor",
    }
    assert (await desk.do("eve", "template:list"))["templates"] == []


async def test_joining_gives_the_template_and_the_role(desk: Desk) -> None:
    await share(desk)
    answer = await desk.do("ben", "template:join", template_id="push")
    assert (answer["role"], answer["template"]["title"]) == ("editor", "Push")
    assert desk.bench.hub.joined(ConnectionId("ben-phone")) == {PUSH}
    await desk.do("ben", "template:leave", template_id="push")
    assert desk.bench.hub.joined(ConnectionId("ben-phone")) == frozenset()


async def test_a_visitor_of_a_public_template_is_a_viewer_and_no_member(desk: Desk) -> None:
    await update(desk, "ana", visibility="public")
    assert (await desk.do("eve", "template:join", template_id="push"))["role"] == "viewer"
    assert (await desk.do("eve", "template:list"))["templates"] == []


@pytest.mark.parametrize(
    ("who", "meta", "is_allowed"),
    [
        ("ana", {"title": "New"}, True),
        ("ana", {"visibility": "public"}, True),
        ("editor", {"title": "New", "difficulty": "hard"}, True),
        ("editor", {"visibility": "public"}, False),
        ("viewer", {"title": "New"}, False),
        ("stranger", {"title": "New"}, False),
    ],
)
async def test_who_may_change_what_of_the_meta(
    desk: Desk, who: str, meta: dict[str, Any], is_allowed: bool
) -> None:
    for role in ("editor", "viewer"):
        await share(desk, role, role)
    answer = await update(desk, who, **meta)
    assert answer["ok"] is is_allowed
    shown = (await desk.do("ana", "template:get", template_id="push"))["template"]
    assert ({key: shown[key] for key in meta} == meta) is is_allowed
    assert is_allowed or answer["error"]["code"] == "forbidden"


async def test_null_removes_an_optional_field_of_the_meta(desk: Desk) -> None:
    await update(desk, "ana", goal="strength")
    await update(desk, "ana", goal=None)
    shown = (await desk.do("ana", "template:get", template_id="push"))["template"]
    assert shown["goal"] is None


async def test_a_change_of_the_meta_is_told_and_listed(desk: Desk) -> None:
    await update(desk, "ana", title="Pull")
    assert desk.outlet.named("template:changed")[-1]["meta"] == {"title": "Pull"}
    assert (await desk.do("ana", "template:list"))["templates"][0]["title"] == "Pull"


# -- sharing ----------------------------------------------------------------------------------


async def test_sharing_is_told_to_the_one_who_gets_it(desk: Desk) -> None:
    answer = await share(desk)
    assert (answer["user_id"], answer["role"], answer["durability"]) == ("ben", "editor", "memory")
    [(user_id, event, told)] = desk.sessions.told
    assert (user_id, event) == ("ben", "template:shared")
    assert told == {
        "template_id": "push",
        "title": "Push",
        "role": "editor",
        "by": {"id": "ana", "name": "Ana"},
    }


async def test_a_role_may_be_changed(desk: Desk) -> None:
    await share(desk, role="editor")
    await share(desk, role="viewer")
    assert (await update(desk, "ben", title="Mine"))["error"]["code"] == "forbidden"


async def test_unsharing_takes_the_right_away(desk: Desk) -> None:
    await share(desk)
    await desk.do("ana", "template:unshare", template_id="push", user_id="ben")
    assert desk.outlet.commits[-1].touches_access
    assert (await desk.refused("ben", "template:get", template_id="push"))["code"] == "forbidden"
    assert (await desk.do("ben", "template:list"))["templates"] == []


async def test_unsharing_with_a_stranger_is_not_found(desk: Desk) -> None:
    error = await desk.refused("ana", "template:unshare", template_id="push", user_id="ben")
    assert error["code"] == "not_found"


@pytest.mark.parametrize(
    ("event", "data"), [("template:share", {"role": "viewer"}), ("template:unshare", {})]
)
async def test_the_owner_stays_the_owner(desk: Desk, event: str, data: dict[str, Any]) -> None:
    error = await desk.refused("ana", event, template_id="push", user_id="ana", **data)
    assert error["code"] == "conflict"


@pytest.mark.parametrize("who", ["editor", "viewer", "stranger"])
@pytest.mark.parametrize(
    ("event", "data"), [("template:share", {"role": "viewer"}), ("template:unshare", {})]
)
async def test_only_the_owner_shares(
    desk: Desk, who: str, event: str, data: dict[str, Any]
) -> None:
    for role in ("editor", "viewer"):
        await share(desk, role, role)
    error = await desk.refused(who, event, template_id="push", user_id="zoe", **data)
    assert error["code"] == "forbidden"


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("template:get", {}),
        ("template:join", {}),
        ("template:update_meta", {"meta": {"title": "x"}}),
        ("template:share", {"user_id": "ben", "role": "viewer"}),
        ("template:unshare", {"user_id": "ben"}),
    ],
)
async def test_what_is_not_there_is_not_found_and_what_is_private_forbidden(
    desk: Desk, event: str, data: dict[str, Any]
) -> None:
    assert (await desk.refused("ana", event, template_id="none", **data))["code"] == "not_found"
    assert (await desk.refused("eve", event, template_id="push", **data))["code"] == "forbidden"
