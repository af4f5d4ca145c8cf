"""Updates changed by their structure: what no client would write, and a decoder still reads."""

from __future__ import annotations

from random import Random

from crdt.wire import var_bytes, var_uint
from tests.fuzz.stories import LAPTOP_IDS
from tests.fuzz.target import mutate_bytes, mutate_list
from tests.helpers import yjs_v1
from tests.helpers.yjs_v1 import Section, Struct, Update

CLIENT_IDS = (
    *(1, 7, 127, 128, 3_001, 2**31, 2**32 - 1, 2**32, 2**53 - 1),
    *LAPTOP_IDS.values(),
    *(0, 2**53, 2**63, 2**64 - 1),
)
CLOCKS = (0, 1, 2, 3, 7, 100, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1)


def splice(update: bytes, random: Random) -> bytes:
    """Change an update by its structure."""
    try:
        found = yjs_v1.parse(update)
    except (ValueError, RecursionError):
        return mutate_bytes(update, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        how = random.randrange(8)
        if how == 0:
            _change_section(found, random)
        elif how <= 4:
            _change_struct(found, random)
        elif how == 5:
            mutate_list(found.sections, random)
        else:
            _change_deletes(found, random)
    return found.encode()


def _change_section(update: Update, random: Random) -> None:
    if not update.sections:
        update.sections.append(
            Section(random.choice(CLIENT_IDS), random.choice(CLOCKS), [odd_struct(random)])
        )
        return
    section = random.choice(update.sections)
    if random.randrange(2):
        section.client = random.choice(CLIENT_IDS)
    else:
        section.clock = random.choice((*CLOCKS, section.clock + 1, max(0, section.clock - 1)))


def _change_struct(update: Update, random: Random) -> None:
    sections = [section for section in update.sections if section.structs]
    if not sections:
        return
    section = random.choice(sections)
    struct = random.choice(section.structs)
    how = random.randrange(8)
    if how == 0:
        mutate_list(section.structs, random)
    elif how == 1:
        section.structs.insert(random.randrange(len(section.structs) + 1), odd_struct(random))
    elif how == 2:
        struct.kind, struct.content = odd_content(random)
    elif how == 3:
        struct.parent = random.choice((*ROOT_NAMES, known_id(random)))
    elif how == 4:
        struct.key = random.choice((*KEYS, None))
    elif how == 5:
        struct.origin = random.choice((None, known_id(random)))
    elif how == 6:
        struct.right = random.choice((None, known_id(random)))
    else:
        struct.content = mutate_bytes(struct.content, random)


def _change_deletes(update: Update, random: Random) -> None:
    if update.deletes and random.randrange(3) == 0:
        mutate_list(update.deletes, random)
        return
    client = random.choice(CLIENT_IDS)
    ranges = [
        (random.choice(CLOCKS), random.choice(CLOCKS)) for _ in range(random.choice((0, 1, 1, 3)))
    ]
    update.deletes.append((client, ranges))


ROOT_NAMES = (b"meta", b"exercises", b"sets", b"timers", b"notes", b"extras", b"", b"\xff\xfe")
KEYS = (
    *(b"title", b"status", b"owner_id", b"s-ana", b"s-par", b"e-ana", b"e-edi", b"n1", b"0"),
    *(b"user_id", b"", b"\xff\xfe", b"x" * 300),
)


def known_id(random: Random) -> yjs_v1.Id:
    return random.choice((*LAPTOP_IDS.values(), *CLIENT_IDS)), random.choice(
        (*range(16), *CLOCKS[5:])
    )


def odd_struct(random: Random) -> Struct:
    if random.randrange(4) == 0:
        return Struct(random.choice((yjs_v1.GC, yjs_v1.SKIP)), length=random.choice(CLOCKS))
    kind, content = odd_content(random)
    return Struct(
        kind,
        content,
        parent=random.choice((*ROOT_NAMES, known_id(random))),
        key=random.choice((*KEYS, None)),
        origin=known_id(random) if random.randrange(4) == 0 else None,
        right=known_id(random) if random.randrange(6) == 0 else None,
    )


def odd_content(random: Random) -> tuple[int, bytes]:
    """(kind, bytes) of what a struct may hold, right or nearly so."""
    text = random.choice((b"", b"x", b"null", b'{"a":1}', b"[" * 200, b"\xff\xfe", "🏋️".encode()))
    count = random.choice((0, 1, 2, 1_000, 2**16))
    return random.choice(
        (
            (yjs_v1.DELETED, var_uint(random.choice(CLOCKS))),
            (yjs_v1.JSON, var_uint(1) + var_bytes(text)),
            (yjs_v1.JSON, var_uint(count)),
            (yjs_v1.BINARY, var_bytes(text)),
            (yjs_v1.STRING, var_bytes(text)),
            (yjs_v1.STRING, var_bytes("🏋️".encode()[:3])),
            (yjs_v1.EMBED, var_bytes(text)),
            (yjs_v1.FORMAT, var_bytes(b"bold") + var_bytes(text)),
            (yjs_v1.TYPE, bytes((random.choice((0, 1, 2, 4, 6, 7, 8, 9, 15, 20)),))),
            (yjs_v1.TYPE, b"\x03" + var_bytes(text)),
            (yjs_v1.TYPE, b"\x05" + var_bytes(text)),
            (yjs_v1.ANY, b"\x01" + odd_any(random)),
            (yjs_v1.ANY, var_uint(count) + odd_any(random) * min(count, 3)),
            (yjs_v1.DOC, var_bytes(text) + odd_any(random)),
            (yjs_v1.DOC, var_bytes(b"guid") + b"\x76\x00"),
            (yjs_v1.MOVE, bytes(random.randrange(256) for _ in range(random.randrange(8)))),
            (random.randrange(12, 32), text),
        )
    )


def odd_any(random: Random) -> bytes:
    """One value of lib0's `any`."""
    depth = random.choice((1, 9, 50, 200))
    return random.choice(
        (
            *(b"\x7f", b"\x7e", b"\x79", b"\x78", b"\x7d\x05", b"\x7d\x45"),
            *(b"\x7d" + b"\xff" * 9 + b"\x01", b"\x7d\xbf\xff\xff\xff\xff\xff\xff\xff\x7f"),
            *(b"\x7c\x7f\xc0\x00\x00", b"\x7b\x7f\xf0" + bytes(6), b"\x7a" + b"\xff" * 8),
            *(b"\x77\x00", b"\x77\x02\xff\xfe", b"\x77\x03ana", b"\x77\x03par", b"\x74\x02ab"),
            *(b"\x75\x00", b"\x75\x02\x7e\x7e", b"\x76\x00", b"\x76\x01\x01a\x7e"),
            b"\x75\x01" * depth + b"\x7e",
            b"\x76\x01\x01a" * depth + b"\x7e",
            b"\x76\x02\x01a\x7e\x01a\x7e",
            b"\x75" + var_uint(random.choice(CLOCKS)),
            *(b"\x70", b""),
        )
    )


def odd_vector(random: Random) -> bytes:
    """A state vector that may count more than it holds."""
    count = random.randrange(4)
    entries = [
        var_uint(random.choice(CLIENT_IDS)) + var_uint(random.choice(CLOCKS)) for _ in range(count)
    ]
    return var_uint(random.choice((count, count, *CLOCKS))) + b"".join(entries)
