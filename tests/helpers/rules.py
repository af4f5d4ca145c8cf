"""Who may do what, as tables to be read: one row for each thing that can be done, one column for
each role, and in the cells what becomes of it, `ok` or the code of the refusal.

`visitor` stands for everybody who is no member, whatever they may see: a friend of the owner, a
stranger, and one whose token says `admin`, each with a document that is private, for friends, and
public; `-` is what cannot be done. What is done in a row stands below the tables, under the row's
name.

| door     | what is done there                                                          |
|----------|-----------------------------------------------------------------------------|
| `update` | the edit is made by a Yjs client                                            |
| `intent` | the same is written for an intent, past whatever its handler has checked    |
| `both`   | one after the other: the two doors agree                                    |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pycrdt import Map, Text

from crdt import ids
from crdt.access import Member, User
from crdt.ids import DocKind, DocName, UserId
from tests.helpers.replicas import exercise_fields, set_fields
from tests.helpers.rooms import user

OWNER = "ana"
MEMBERS = {
    DocKind.WORKOUT: {"owner": OWNER, "coach": "cleo", "participant": "pat", "spectator": "sam"},
    DocKind.TEMPLATE: {"owner": OWNER, "editor": "ed", "viewer": "vic"},
}
"""Role -> who has it."""

VISITORS = ("fay", "eve", "adam")
"""A friend of the owner's, a stranger, and an administrator."""

VISIBILITIES = ("private", "friends", "public")

NAMES = {DocKind.WORKOUT: ids.workout("legs"), DocKind.TEMPLATE: ids.template("push")}

CLAIMS: dict[str, dict[str, Any]] = {"fay": {"friends": (OWNER,)}, "adam": {"role": "admin"}}
"""What a token says beside who it is."""


def somebody(user_id: str) -> User:
    claims = CLAIMS.get(user_id, {})
    return user(user_id, **{**claims, "friends": frozenset(claims.get("friends", ()))})


def cast_of(kind: DocKind) -> list[str]:
    """Everybody who appears."""
    return [*MEMBERS[kind].values(), *VISITORS]


# -- the tables -------------------------------------------------------------------------------

WORKOUT_CHANGES = """
what                           door   | owner     coach     participant spectator visitor
meta.title put                 both   | ok        ok        ok          forbidden forbidden
meta.title remove              update | invalid   invalid   invalid     forbidden forbidden
meta.title put nonsense        update | invalid   invalid   invalid     forbidden forbidden
meta.mode put                  both   | ok        forbidden forbidden   forbidden forbidden
meta.mode remove               update | invalid   forbidden forbidden   forbidden forbidden
meta.visibility put            both   | ok        forbidden forbidden   forbidden forbidden
meta.visibility put nonsense   update | invalid   forbidden forbidden   forbidden forbidden
meta.visibility remove         update | invalid   forbidden forbidden   forbidden forbidden
meta.status put                update | forbidden forbidden forbidden   forbidden forbidden
meta.status put                intent | ok        ok        forbidden   forbidden forbidden
meta.status remove             update | forbidden forbidden forbidden   forbidden forbidden
meta.started_at put            update | forbidden forbidden forbidden   forbidden forbidden
meta.started_at put            intent | ok        ok        forbidden   forbidden forbidden
meta.resumed_at put            update | forbidden forbidden forbidden   forbidden forbidden
meta.resumed_at put            intent | ok        ok        forbidden   forbidden forbidden
meta.ended_at put              update | forbidden forbidden forbidden   forbidden forbidden
meta.ended_at put              intent | ok        ok        forbidden   forbidden forbidden
meta.active_ms put             update | forbidden forbidden forbidden   forbidden forbidden
meta.active_ms put             intent | ok        ok        forbidden   forbidden forbidden
meta.created_at put            both   | forbidden forbidden forbidden   forbidden forbidden
meta.owner_id put              both   | forbidden forbidden forbidden   forbidden forbidden
meta.owner_id remove           both   | forbidden forbidden forbidden   forbidden forbidden
meta.template_id put           both   | forbidden forbidden forbidden   forbidden forbidden
meta.template_version put      both   | forbidden forbidden forbidden   forbidden forbidden
meta.locked put                both   | forbidden forbidden forbidden   forbidden forbidden
meta.anything put              both   | forbidden forbidden forbidden   forbidden forbidden
exercises add                  both   | ok        ok        ok          forbidden forbidden
exercises add nonsense         update | invalid   invalid   invalid     forbidden forbidden
exercises add with a bad id    update | invalid   invalid   invalid     forbidden forbidden
exercises add too deep         update | invalid   invalid   invalid     forbidden forbidden
exercises change               both   | ok        ok        ok          forbidden forbidden
exercises change target        both   | ok        ok        ok          forbidden forbidden
exercises change to nonsense   update | invalid   invalid   invalid     forbidden forbidden
exercises replace              both   | ok        ok        ok          forbidden forbidden
exercises remove               both   | ok        ok        ok          forbidden forbidden
own set add                    both   | ok        ok        ok          forbidden forbidden
own set add nonsense           update | invalid   invalid   invalid     forbidden forbidden
own set change                 both   | ok        ok        ok          forbidden forbidden
own set change to nonsense     update | invalid   invalid   invalid     forbidden forbidden
own set replace                both   | ok        ok        ok          forbidden forbidden
own set remove                 both   | ok        ok        ok          forbidden forbidden
own set give away              both   | forbidden forbidden forbidden   forbidden forbidden
own set disown                 both   | forbidden forbidden forbidden   forbidden forbidden
another's set add              both   | forbidden forbidden forbidden   forbidden forbidden
another's set change           both   | forbidden forbidden forbidden   forbidden forbidden
another's set replace          both   | forbidden forbidden forbidden   forbidden forbidden
another's set take over        both   | forbidden forbidden forbidden   forbidden forbidden
another's set remove           both   | forbidden forbidden forbidden   forbidden forbidden
own timer put                  update | forbidden forbidden forbidden   forbidden forbidden
own timer put                  intent | ok        ok        ok          forbidden forbidden
own timer change               update | forbidden forbidden forbidden   forbidden forbidden
own timer change               intent | ok        ok        ok          forbidden forbidden
own timer remove               update | forbidden forbidden forbidden   forbidden forbidden
own timer remove               intent | ok        ok        ok          forbidden forbidden
room timer add                 update | forbidden forbidden forbidden   forbidden forbidden
room timer add                 intent | ok        ok        ok          forbidden forbidden
another's timer change         update | forbidden forbidden forbidden   forbidden forbidden
another's timer change         intent | ok        ok        forbidden   forbidden forbidden
another's timer remove         update | forbidden forbidden forbidden   forbidden forbidden
another's timer remove         intent | ok        ok        forbidden   forbidden forbidden
an unknown root put            update | invalid   invalid   invalid     invalid   invalid
title and another's set        both   | forbidden forbidden forbidden   forbidden forbidden
"""

TEMPLATE_CHANGES = """
what                           door   | owner     editor    viewer    visitor   | locked: owner editor viewer visitor
meta.title put                 both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
meta.title remove              update | invalid   invalid   forbidden forbidden | locked    locked    forbidden forbidden
meta.title put nonsense        update | invalid   invalid   forbidden forbidden | locked    locked    forbidden forbidden
meta.goal put                  both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
meta.goal remove               both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
meta.difficulty put            both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
meta.difficulty remove         both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
meta.visibility put            both   | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
meta.visibility put nonsense   update | invalid   forbidden forbidden forbidden | invalid   forbidden forbidden forbidden
meta.visibility remove         update | invalid   forbidden forbidden forbidden | invalid   forbidden forbidden forbidden
meta.locked put                update | forbidden forbidden forbidden forbidden | forbidden forbidden forbidden forbidden
meta.locked put                intent | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
meta.locked remove             update | forbidden forbidden forbidden forbidden | forbidden forbidden forbidden forbidden
meta.owner_id put              both   | forbidden forbidden forbidden forbidden | locked    locked    forbidden forbidden
meta.owner_id remove           both   | forbidden forbidden forbidden forbidden | locked    locked    forbidden forbidden
meta.forked_from put           both   | forbidden forbidden forbidden forbidden | locked    locked    forbidden forbidden
meta.anything put              both   | forbidden forbidden forbidden forbidden | locked    locked    forbidden forbidden
exercises add                  both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
exercises add nonsense         update | invalid   invalid   forbidden forbidden | locked    locked    forbidden forbidden
exercises change               both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
exercises change to nonsense   update | invalid   invalid   forbidden forbidden | locked    locked    forbidden forbidden
exercises replace              both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
exercises remove               both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
exercises type into the note   both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
exercises cut from the note    both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
planned set add                both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
planned set add nonsense       update | invalid   invalid   forbidden forbidden | locked    locked    forbidden forbidden
planned set change             both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
planned set replace            both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
planned set remove             both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
notes type                     both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
notes cut                      both   | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
an unknown root put            update | invalid   invalid   invalid   invalid   | invalid   invalid   invalid   invalid
title and owner                both   | forbidden forbidden forbidden forbidden | locked    locked    forbidden forbidden
title and visibility           both   | ok        forbidden forbidden forbidden | locked    locked    forbidden forbidden
"""  # noqa: E501 - a table is as wide as it is

WORKOUT_INTENTS = """
what                                  | owner     coach     participant spectator visitor
workout:start                         | ok        ok        forbidden   forbidden forbidden
workout:pause                         | ok        ok        forbidden   forbidden forbidden
workout:resume                        | ok        ok        forbidden   forbidden forbidden
workout:complete                      | ok        ok        forbidden   forbidden forbidden
workout:abandon                       | ok        ok        forbidden   forbidden forbidden
workout:exercise:add                  | ok        ok        ok          forbidden forbidden
workout:exercise:update               | ok        ok        ok          forbidden forbidden
workout:exercise:move                 | ok        ok        ok          forbidden forbidden
workout:exercise:remove               | ok        ok        ok          forbidden forbidden
workout:exercise:remove, logged       | conflict  conflict  conflict    forbidden forbidden
workout:set:complete                  | ok        ok        ok          forbidden forbidden
workout:set:complete, id taken        | conflict  conflict  conflict    forbidden forbidden
workout:set:update, own               | ok        ok        ok          forbidden forbidden
workout:set:update, another's         | forbidden forbidden forbidden   forbidden forbidden
workout:set:remove, own               | ok        ok        ok          forbidden forbidden
workout:set:remove, another's         | forbidden forbidden forbidden   forbidden forbidden
workout:invite, somebody new          | ok        forbidden forbidden   forbidden forbidden
workout:invite, another role          | ok        forbidden forbidden   forbidden forbidden
workout:invite, oneself               | conflict  forbidden forbidden   forbidden forbidden
workout:invite, the owner             | conflict  forbidden forbidden   forbidden forbidden
workout:member:remove                 | ok        forbidden forbidden   forbidden forbidden
workout:member:remove, the owner      | conflict  forbidden forbidden   forbidden forbidden
workout:member:remove, nobody         | not_found forbidden forbidden   forbidden forbidden
workout:join as coach                 | forbidden ok        forbidden   forbidden forbidden
"""

TEMPLATE_INTENTS = """
what                                  | owner     editor    viewer    visitor   | locked: owner editor viewer visitor
template:update_meta, title           | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
template:update_meta, goal            | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
template:update_meta, no goal         | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
template:update_meta, difficulty      | ok        ok        forbidden forbidden | locked    locked    forbidden forbidden
template:update_meta, visibility      | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
template:update_meta, two of them     | ok        forbidden forbidden forbidden | locked    forbidden forbidden forbidden
template:share, somebody new          | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
template:share, another role          | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
template:share, the owner             | conflict  forbidden forbidden forbidden | conflict  forbidden forbidden forbidden
template:unshare                      | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
template:unshare, the owner           | conflict  forbidden forbidden forbidden | conflict  forbidden forbidden forbidden
template:unshare, nobody              | not_found forbidden forbidden forbidden | not_found forbidden forbidden forbidden
template:lock                         | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
template:unlock                       | ok        forbidden forbidden forbidden | ok        forbidden forbidden forbidden
"""  # noqa: E501

WORKOUT_MEMBERSHIPS = """
what                                  | owner     coach     participant spectator visitor
somebody let in                       | ok        forbidden forbidden   forbidden forbidden
somebody let in as owner              | forbidden forbidden forbidden   forbidden forbidden
somebody let in as nobody knows what  | forbidden forbidden forbidden   forbidden forbidden
somebody given another role           | ok        forbidden forbidden   forbidden forbidden
somebody called otherwise             | ok        forbidden forbidden   forbidden forbidden
somebody taken out                    | ok        forbidden forbidden   forbidden forbidden
the owner given another role          | conflict  conflict  conflict    conflict  conflict
the owner taken out                   | conflict  conflict  conflict    conflict  conflict
oneself made owner                    | ok        forbidden forbidden   forbidden forbidden
oneself called otherwise              | ok        ok        ok          ok        -
oneself let in with the highest role  | conflict  ok        forbidden   forbidden forbidden
"""

TEMPLATE_MEMBERSHIPS = """
what                                  | owner     editor    viewer    visitor
somebody let in                       | ok        forbidden forbidden forbidden
somebody let in as owner              | forbidden forbidden forbidden forbidden
somebody let in as nobody knows what  | forbidden forbidden forbidden forbidden
somebody given another role           | ok        forbidden forbidden forbidden
somebody called otherwise             | ok        forbidden forbidden forbidden
somebody taken out                    | ok        forbidden forbidden forbidden
the owner given another role          | conflict  conflict  conflict  conflict
the owner taken out                   | conflict  conflict  conflict  conflict
oneself made owner                    | ok        forbidden forbidden forbidden
oneself called otherwise              | ok        ok        ok        -
oneself let in with the highest role  | conflict  ok        forbidden forbidden
"""

READING = """
what                  visibility | member      friend      stranger  admin
workout:sync          private    | ok          forbidden   forbidden forbidden
workout:sync          friends    | ok          ok          forbidden forbidden
workout:sync          public     | ok          ok          ok        ok
workout:join, group   private    | ok          forbidden   forbidden forbidden
workout:join, group   friends    | ok          participant forbidden forbidden
workout:join, group   public     | ok          participant participant participant
workout:join, solo    private    | ok          forbidden   forbidden forbidden
workout:join, solo    friends    | ok          spectator   forbidden forbidden
workout:join, solo    public     | ok          spectator   spectator spectator
template:get          private    | ok          forbidden   forbidden forbidden
template:get          friends    | ok          ok          forbidden forbidden
template:get          public     | ok          ok          ok        ok
template:join         private    | ok          forbidden   forbidden forbidden
template:join         friends    | ok          viewer      forbidden forbidden
template:join         public     | ok          viewer      viewer    viewer
subscribe progress    private    | ok          forbidden   forbidden forbidden
subscribe progress    friends    | ok          ok          forbidden forbidden
subscribe progress    public     | ok          ok          ok        ok
document, workout     private    | ok          forbidden   forbidden forbidden
document, workout     friends    | ok          ok          forbidden forbidden
document, workout     public     | ok          ok          ok        ok
document, template    private    | ok          forbidden   forbidden forbidden
document, template    friends    | ok          ok          forbidden forbidden
document, template    public     | ok          ok          ok        ok
awareness, workout    private    | ok          forbidden   forbidden forbidden
awareness, workout    friends    | ok          ok          forbidden forbidden
awareness, workout    public     | ok          ok          ok        ok
awareness, template   private    | ok          forbidden   forbidden forbidden
awareness, template   friends    | ok          ok          forbidden forbidden
awareness, template   public     | ok          ok          ok        ok
"""


# -- reading a table --------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a table, and one of its blocks of columns."""

    what: str
    tag: str
    """The column before the roles: a door, or a visibility."""
    cells: dict[str, str]
    is_locked: bool = False

    def __str__(self) -> str:
        return " ".join([*("locked" for _ in range(self.is_locked)), self.what, self.tag]).strip()


def rows_of(table: str, *, is_tagged: bool = False) -> list[Row]:
    """The rows of a table, those with a template that is locked as rows of their own."""
    heading, *lines = table.strip().splitlines()
    roles = heading.split("|")[1].split()
    rows = []
    for line in lines:
        what, *blocks = line.split("|")
        tag = ""
        if is_tagged:
            what, tag = what.rstrip().rsplit(maxsplit=1)
        for is_locked, block in zip((False, True), blocks, strict=False):
            cells = dict(zip(roles, block.split(), strict=True))
            rows.append(Row(what.strip(), tag, cells, is_locked))
    return rows


def played_by(row: Row, kind: DocKind) -> Iterator[tuple[str, str, str]]:
    """(user id, visibility, what is expected) for everybody whom the row speaks of."""
    for role, expected in row.cells.items():
        if expected == "-":
            continue
        if role != "visitor":
            yield MEMBERS[kind][role], "private", expected
            continue
        for visitor in VISITORS:
            for visibility in VISIBILITIES:
                yield visitor, visibility, expected


# -- what is done in a row --------------------------------------------------------------------

Edit = Callable[[dict[str, Any], str], Any]
"""(the roots of a replica, who edits it)."""


def another(me: str) -> str:
    """Somebody else, who has a set and a timer too."""
    return "pat" if me == OWNER else OWNER


def shared(value: Any) -> Any:
    """A dict as a shared map."""
    return Map({k: shared(v) for k, v in value.items()}) if isinstance(value, dict) else value


def put(root: str, key: str, value: Any) -> Edit:
    return lambda roots, me: roots[root].__setitem__(key, shared(value))


def remove(root: str, key: str) -> Edit:
    return lambda roots, me: roots[root].pop(key)


def both(first: Edit, second: Edit) -> Edit:
    return lambda roots, me: (first(roots, me), second(roots, me))


def set_of(me: str, **changes: Any) -> Map[Any]:
    return Map(set_fields(user_id=me, exercise="squat", **changes))


TIMER = {"kind": "rest", "duration_ms": 60_000, "started_at": 1_700_000_000_000, "by": "x"}
TOO_DEEP = {"note": "", "extra": [[[[[[[[[1]]]]]]]]]}
PLANNED = {"order": "a1", "kind": "normal", "reps": 8}

SHOW_OTHERWISE: Edit = lambda roots, me: roots["meta"].__setitem__(  # noqa: E731
    "visibility", "friends" if roots["meta"]["visibility"] == "public" else "public"
)
ADD_OWN: Edit = lambda roots, me: roots["sets"].__setitem__("new", set_of(me))  # noqa: E731
ADD_ANOTHERS: Edit = lambda roots, me: roots["sets"].__setitem__("new", set_of(another(me)))  # noqa: E731

PUT_ELSEWHERE: Edit = lambda roots, me: (  # noqa: E731
    roots["meta"].doc.get("elsewhere", type=Map).__setitem__("key", "nobody reads this")
)

WORKOUT_EDITS: dict[str, Edit] = {
    "meta.title put": put("meta", "title", "Pull day"),
    "meta.title remove": remove("meta", "title"),
    "meta.title put nonsense": put("meta", "title", 5),
    "meta.mode put": put("meta", "mode", "solo"),
    "meta.mode remove": remove("meta", "mode"),
    "meta.visibility put": SHOW_OTHERWISE,
    "meta.visibility put nonsense": put("meta", "visibility", "all"),
    "meta.visibility remove": remove("meta", "visibility"),
    "meta.status put": put("meta", "status", "completed"),
    "meta.status remove": remove("meta", "status"),
    "meta.started_at put": put("meta", "started_at", 5),
    "meta.resumed_at put": put("meta", "resumed_at", 5),
    "meta.ended_at put": put("meta", "ended_at", 5),
    "meta.active_ms put": put("meta", "active_ms", 5),
    "meta.created_at put": put("meta", "created_at", 5),
    "meta.owner_id put": lambda roots, me: roots["meta"].__setitem__("owner_id", f"{me} too"),
    "meta.owner_id remove": remove("meta", "owner_id"),
    "meta.template_id put": put("meta", "template_id", "other"),
    "meta.template_version put": put("meta", "template_version", 5),
    "meta.locked put": put("meta", "locked", True),
    "meta.anything put": put("meta", "anything", "x"),
    "exercises add": put("exercises", "new", exercise_fields(target=[{"reps": 5}])),
    "exercises add nonsense": put("exercises", "new", 5),
    "exercises add with a bad id": put("exercises", "a,b", exercise_fields()),
    "exercises add too deep": put("exercises", "new", {**exercise_fields(), **TOO_DEEP}),
    "exercises change": lambda roots, me: roots["exercises"]["squat"].__setitem__("rest_s", 90),
    "exercises change target": lambda roots, me: roots["exercises"]["squat"].__setitem__(
        "target", [{"kind": "normal", "reps": 3}]
    ),
    "exercises change to nonsense": lambda roots, me: roots["exercises"]["squat"].__setitem__(
        "rest_s", -1
    ),
    "exercises replace": put("exercises", "squat", exercise_fields(name="Front squat")),
    "exercises remove": remove("exercises", "row"),
    "own set add": ADD_OWN,
    "own set add nonsense": lambda roots, me: roots["sets"].__setitem__("new", set_of(me, reps=-1)),
    "own set change": lambda roots, me: roots["sets"][me].__setitem__("reps", 6),
    "own set change to nonsense": lambda roots, me: roots["sets"][me].__setitem__("reps", "six"),
    "own set replace": lambda roots, me: roots["sets"].__setitem__(me, set_of(me, reps=6)),
    "own set remove": lambda roots, me: roots["sets"].pop(me),
    "own set give away": lambda roots, me: roots["sets"][me].__setitem__("user_id", another(me)),
    "own set disown": lambda roots, me: roots["sets"][me].pop("user_id"),
    "another's set add": ADD_ANOTHERS,
    "another's set change": lambda roots, me: roots["sets"][another(me)].__setitem__("reps", 6),
    "another's set replace": lambda roots, me: roots["sets"].__setitem__(another(me), set_of(me)),
    "another's set take over": lambda roots, me: roots["sets"][another(me)].__setitem__(
        "user_id", me
    ),
    "another's set remove": lambda roots, me: roots["sets"].pop(another(me)),
    "own timer put": lambda roots, me: roots["timers"].__setitem__(me, shared(TIMER)),
    "own timer change": lambda roots, me: roots["timers"][me].__setitem__("paused_at", 5),
    "own timer remove": lambda roots, me: roots["timers"].pop(me),
    "room timer add": put("timers", "room", TIMER),
    "another's timer change": lambda roots, me: roots["timers"][another(me)].__setitem__(
        "paused_at", 5
    ),
    "another's timer remove": lambda roots, me: roots["timers"].pop(another(me)),
    "an unknown root put": PUT_ELSEWHERE,
    "title and another's set": both(put("meta", "title", "Pull day"), ADD_ANOTHERS),
}

TEMPLATE_EDITS: dict[str, Edit] = {
    "meta.title put": put("meta", "title", "Pull"),
    "meta.title remove": remove("meta", "title"),
    "meta.title put nonsense": put("meta", "title", ""),
    "meta.goal put": put("meta", "goal", "size"),
    "meta.goal remove": remove("meta", "goal"),
    "meta.difficulty put": put("meta", "difficulty", "easy"),
    "meta.difficulty remove": remove("meta", "difficulty"),
    "meta.visibility put": SHOW_OTHERWISE,
    "meta.visibility put nonsense": put("meta", "visibility", "all"),
    "meta.visibility remove": remove("meta", "visibility"),
    "meta.locked put": lambda roots, me: roots["meta"].__setitem__(
        "locked", not roots["meta"]["locked"]
    ),
    "meta.locked remove": remove("meta", "locked"),
    "meta.owner_id put": lambda roots, me: roots["meta"].__setitem__("owner_id", f"{me} too"),
    "meta.owner_id remove": remove("meta", "owner_id"),
    "meta.forked_from put": put("meta", "forked_from", "other"),
    "meta.anything put": put("meta", "anything", "x"),
    "exercises add": lambda roots, me: roots["exercises"].__setitem__(
        "new", Map({"name": "Row", "order": "a2", "note": Text("slow"), "sets": Map()})
    ),
    "exercises add nonsense": put("exercises", "new", {"name": 5}),
    "exercises change": lambda roots, me: roots["exercises"]["squat"].__setitem__("rest_s", 90),
    "exercises change to nonsense": lambda roots, me: roots["exercises"]["squat"].__setitem__(
        "rest_s", -1
    ),
    "exercises replace": lambda roots, me: roots["exercises"].__setitem__(
        "squat", Map({"name": "Front squat", "order": "a0", "note": Text(), "sets": Map()})
    ),
    "exercises remove": remove("exercises", "squat"),
    "exercises type into the note": lambda roots, me: roots["exercises"]["squat"]["note"].insert(
        0, "very "
    ),
    "exercises cut from the note": lambda roots, me: roots["exercises"]["squat"]["note"].clear(),
    "planned set add": lambda roots, me: roots["exercises"]["squat"]["sets"].__setitem__(
        "new", Map(PLANNED)
    ),
    "planned set add nonsense": lambda roots, me: roots["exercises"]["squat"]["sets"].__setitem__(
        "new", Map({"reps": -1})
    ),
    "planned set change": lambda roots, me: roots["exercises"]["squat"]["sets"]["one"].__setitem__(
        "reps", 6
    ),
    "planned set replace": lambda roots, me: roots["exercises"]["squat"]["sets"].__setitem__(
        "one", Map(PLANNED)
    ),
    "planned set remove": lambda roots, me: roots["exercises"]["squat"]["sets"].pop("one"),
    "notes type": lambda roots, me: roots["notes"].insert(0, "Mondays: "),
    "notes cut": lambda roots, me: roots["notes"].clear(),
    "an unknown root put": PUT_ELSEWHERE,
    "title and owner": both(put("meta", "title", "Pull"), put("meta", "owner_id", "eve")),
    "title and visibility": both(put("meta", "title", "Pull"), put("meta", "visibility", "public")),
}

EDITS = {DocKind.WORKOUT: WORKOUT_EDITS, DocKind.TEMPLATE: TEMPLATE_EDITS}
CHANGES = {DocKind.WORKOUT: WORKOUT_CHANGES, DocKind.TEMPLATE: TEMPLATE_CHANGES}


@dataclass(frozen=True)
class Intent:
    """An event, what it carries beside the document's id, and what the owner does before it."""

    event: str
    data: Callable[[str], dict[str, Any]]
    before: tuple[str, ...] = ()


def intent(event: str, *before: str, **data: Any) -> Intent:
    return Intent(event, lambda me: data, before)


INTENTS: dict[str, Intent] = {
    "workout:start": intent("workout:start"),
    "workout:pause": intent("workout:pause", "start"),
    "workout:resume": intent("workout:resume", "start", "pause"),
    "workout:complete": intent("workout:complete", "start"),
    "workout:abandon": intent("workout:abandon", "start"),
    "workout:exercise:add": intent("workout:exercise:add", exercise={"name": "Bench"}),
    "workout:exercise:update": intent(
        "workout:exercise:update", exercise_id="squat", exercise={"rest_s": 90}
    ),
    "workout:exercise:move": intent("workout:exercise:move", exercise_id="row", before="squat"),
    "workout:exercise:remove": intent("workout:exercise:remove", exercise_id="row"),
    "workout:exercise:remove, logged": intent("workout:exercise:remove", exercise_id="squat"),
    "workout:set:complete": intent("workout:set:complete", exercise_id="squat", set={"reps": 5}),
    "workout:set:complete, id taken": Intent(
        "workout:set:complete",
        lambda me: {"exercise_id": "squat", "set": {"reps": 5}, "set_id": another(me)},
    ),
    "workout:set:update, own": Intent(
        "workout:set:update", lambda me: {"set_id": me, "set": {"reps": 6}}
    ),
    "workout:set:update, another's": Intent(
        "workout:set:update", lambda me: {"set_id": another(me), "set": {"reps": 6}}
    ),
    "workout:set:remove, own": Intent("workout:set:remove", lambda me: {"set_id": me}),
    "workout:set:remove, another's": Intent(
        "workout:set:remove", lambda me: {"set_id": another(me)}
    ),
    "workout:invite, somebody new": intent("workout:invite", user_id="zoe", role="coach"),
    "workout:invite, another role": intent("workout:invite", user_id="pat", role="spectator"),
    "workout:invite, oneself": Intent(
        "workout:invite",
        lambda me: {"user_id": me, "role": "coach" if me != "cleo" else "participant"},
    ),
    "workout:invite, the owner": intent("workout:invite", user_id=OWNER, role="spectator"),
    "workout:member:remove": intent("workout:member:remove", user_id="pat"),
    "workout:member:remove, the owner": intent("workout:member:remove", user_id=OWNER),
    "workout:member:remove, nobody": intent("workout:member:remove", user_id="zoe"),
    "workout:join as coach": intent("workout:join", role="coach"),
    "template:update_meta, title": intent("template:update_meta", meta={"title": "Pull"}),
    "template:update_meta, goal": intent("template:update_meta", meta={"goal": "size"}),
    "template:update_meta, no goal": intent("template:update_meta", meta={"goal": None}),
    "template:update_meta, difficulty": intent("template:update_meta", meta={"difficulty": "hard"}),
    "template:update_meta, visibility": intent(
        "template:update_meta", meta={"visibility": "public"}
    ),
    "template:update_meta, two of them": intent(
        "template:update_meta", meta={"title": "Pull", "visibility": "public"}
    ),
    "template:share, somebody new": intent("template:share", user_id="zoe", role="editor"),
    "template:share, another role": intent("template:share", user_id="vic", role="editor"),
    "template:share, the owner": intent("template:share", user_id=OWNER, role="editor"),
    "template:unshare": intent("template:unshare", user_id="vic"),
    "template:unshare, the owner": intent("template:unshare", user_id=OWNER),
    "template:unshare, nobody": intent("template:unshare", user_id="zoe"),
    "template:lock": intent("template:lock"),
    "template:unlock": intent("template:unlock"),
}


def payload(name: DocName, found: Intent, me: str) -> dict[str, Any]:
    return {f"{name.kind.value}_id": name.id, **found.data(me)}


LOWEST = {DocKind.WORKOUT: ("spectator", "sam"), DocKind.TEMPLATE: ("viewer", "vic")}
HIGHEST = {DocKind.WORKOUT: ("coach", "cleo"), DocKind.TEMPLATE: ("editor", "ed")}


def membership(kind: DocKind, me: str, what: str) -> Member:
    """What somebody writes into the list of members, past what any handler has checked."""
    highest, high_one = HIGHEST[kind]
    lowest, low_one = LOWEST[kind]
    mine = {who: role for role, who in MEMBERS[kind].items()}.get(me, "")
    user_id, role, name = {
        "somebody let in": ("zoe", lowest, "zoe"),
        "somebody let in as owner": ("zoe", "owner", "zoe"),
        "somebody let in as nobody knows what": ("zoe", "admin", "zoe"),
        "somebody given another role": (low_one, highest, low_one),
        "somebody called otherwise": (
            (low_one, lowest, "Otherwise") if me != low_one else (high_one, highest, "Otherwise")
        ),
        "somebody taken out": (low_one, "", low_one),
        "the owner given another role": (OWNER, highest, OWNER),
        "the owner taken out": (OWNER, "", OWNER),
        "oneself made owner": (me, "owner", me),
        "oneself called otherwise": (me, mine, "Otherwise"),
        "oneself let in with the highest role": (me, highest, me),
    }[what]
    return Member(UserId(user_id), role, name)


# -- what is there before ---------------------------------------------------------------------


def seeds(kind: DocKind) -> dict[tuple[str, str], Any]:
    """(root, key) -> what stands there. Everybody has a set, also those who may only read now, as
    one who was a participant once."""
    if kind is DocKind.TEMPLATE:
        squat = {
            "name": "Squat",
            "order": "a0",
            "note": "deep",
            "sets": {"one": {"order": "a0", "kind": "normal", "reps": 5}},
        }
        return {
            ("exercises", "squat"): squat,
            ("notes", "text"): "Warm up 🔥",
            ("meta", "goal"): "strength",
            ("meta", "difficulty"): "hard",
        }
    return {
        ("exercises", "squat"): exercise_fields(),
        ("exercises", "row"): exercise_fields(name="Row", order="a1"),
        **{("sets", who): set_fields(user_id=who, exercise="squat") for who in cast_of(kind)},
        **{("timers", who): {**TIMER, "by": who} for who in cast_of(kind)},
    }


def invitations(kind: DocKind) -> Iterator[tuple[str, dict[str, str]]]:
    """The intents that let the members in."""
    event = "workout:invite" if kind is DocKind.WORKOUT else "template:share"
    for role, user_id in MEMBERS[kind].items():
        if role != "owner":
            about = {f"{kind.value}_id": NAMES[kind].id}
            yield event, {**about, "user_id": user_id, "role": role}
