"""The order of items that several people rearrange at once.

Each item carries a fractional index, a string; a list is sorted by (index, id). Two clients that
append at the same time make the same index, and the id breaks the tie, so nothing is lost or
doubled. An item cannot be put *between* two items of one index: then the ones that follow get
new indices as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fractional_indexing import (
    BASE_62_DIGITS,
    FIError,
    generate_key_between,
    generate_n_keys_between,
    validate_order_key,
)

from crdt.errors import Invalid, NotFound

Items = Mapping[str, Any]
"""id -> fields, of which `order` counts here. What is no item sorts first."""


def in_order(items: Items) -> list[str]:
    """The ids of `items` (id -> fields with `order`), first to last."""
    return sorted(items, key=lambda id_: (_key(items[id_]), id_))


def append_key(items: Items) -> str:
    """The index of a new item at the end."""
    last = max((_key(item) for item in items.values()), default="")
    if last and not _is_index(last):
        # A client wrote something that is no index. Any text sorts, so stay behind it.
        return last + "V"
    return str(generate_key_between(last or None, None))


def append_keys(count: int) -> list[str]:
    """The indices of `count` items of a new list."""
    return [str(key) for key in generate_n_keys_between(None, None, count)]


def place(
    items: Items, moved: str, *, before: str | None = None, after: str | None = None
) -> dict[str, str]:
    """Put one item before or after another; with neither, at the end.

    Args:
        items: id -> fields; may or may not hold `moved`.
    Returns:
        id -> new index, for `moved` and for those that had to make room (none as a rule).
    Raises:
        Invalid: both neighbours given, or an item next to itself.
        NotFound: the neighbour is not in the list.
    """
    if before is not None and after is not None:
        raise Invalid.at("before", "give before or after, not both")
    neighbour = before if before is not None else after
    if neighbour == moved:
        raise Invalid.at("before" if before is not None else "after", "cannot be the item itself")
    rest = [id_ for id_ in in_order(items) if id_ != moved]
    if neighbour is not None and neighbour not in rest:
        raise NotFound(f"there is no {neighbour} to stand next to")
    if neighbour is None:
        position = len(rest)
    else:
        position = rest.index(neighbour) + (1 if after is not None else 0)

    wanted = [*rest[:position], moved, *rest[position:]]
    keys = {id_: _key(items[id_]) for id_ in rest}
    if not all(_is_index(key) for key in keys.values()):
        return dict(zip(wanted, append_keys(len(wanted)), strict=True))

    low = keys[rest[position - 1]] if position else None
    # Whoever shares the left neighbour's index must move along, or the new item cannot fit.
    end = position
    while end < len(rest) and keys[rest[end]] == low:
        end += 1
    high = keys[rest[end]] if end < len(rest) else None
    changed = [moved, *rest[position:end]]
    fresh = generate_n_keys_between(low, high, len(changed))
    return {id_: str(key) for id_, key in zip(changed, fresh, strict=True)}


def _key(item: Any) -> str:
    key = item.get("order") if isinstance(item, Mapping) else None
    return key if isinstance(key, str) else ""


def _is_index(key: str) -> bool:
    try:
        validate_order_key(key)
    except (FIError, IndexError, ValueError):
        return False
    return all(char in BASE_62_DIGITS for char in key)
