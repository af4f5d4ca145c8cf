"""Strong and Hevy CSV exports, read into typed workouts; only `read_export` touches a file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

App = Literal["strong", "hevy"]
SetKind = Literal["warmup", "normal", "drop", "failure"]


@dataclass(frozen=True, slots=True)
class LoggedSet:
    """One set. None means that the app was given no such value; both apps also write that as 0.

    `line` is the 1-based line where the row starts (notes may span lines); `order` is the set's
    0-based place among the kept sets of its workout, as logged.
    """

    line: int
    exercise: str
    order: int
    kind: SetKind
    weight_kg: float | None
    reps: int | None
    seconds: int | None
    distance_m: float | None
    rpe: float | None
    note: str
    superset: str | None


@dataclass(frozen=True, slots=True)
class LoggedWorkout:
    """One workout of one set or more. Times are Unix milliseconds, end >= start.

    Exports carry no zone, so the lifter's wall clock is read as if it were UTC.
    """

    title: str
    started_at_ms: int
    ended_at_ms: int
    note: str
    sets: tuple[LoggedSet, ...]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was left out: the 1-based line where it starts, and why in plain words."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingExport:
    """What one file holds: workouts oldest first, and the rows left out in file order."""

    app: App
    workouts: tuple[LoggedWorkout, ...]
    skipped: tuple[SkippedRow, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an app names things: our field -> the spellings of its column, set type -> our kind."""

    app: App
    columns: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, SetKind]


_HEVY = _Layout(
    "hevy",
    columns={
        "title": ("title",),
        "start": ("start_time",),
        "end": ("end_time",),
        "workout_note": ("description",),
        "exercise": ("exercise_title",),
        "kind": ("set_type",),
        "weight": ("weight_kg", "weight_lbs"),
        "reps": ("reps",),
        "rpe": ("rpe",),
        "distance": ("distance_km", "distance_miles"),
        "seconds": ("duration_seconds",),
        "note": ("exercise_notes",),
        "superset": ("superset_id",),
    },
    kinds={"warmup": "warmup", "normal": "normal", "dropset": "drop", "failure": "failure"},
)
# One table for the three layouts of Strong: they differ in delimiter, order and where units stand.
_STRONG = _Layout(
    "strong",
    columns={
        "title": ("Workout Name",),
        "start": ("Date",),
        "duration": ("Duration", "Workout Duration", "Duration (sec)"),
        "workout_note": ("Workout Notes",),
        "exercise": ("Exercise Name",),
        "kind": ("Set Order",),
        "weight": ("Weight", "Weight (kg)", "Weight (lbs)", "Weight (lb)"),
        "weight_unit": ("Weight Unit",),
        "reps": ("Reps",),
        "rpe": ("RPE",),
        "distance": ("Distance", "Distance (meters)", "Distance (km)", "Distance (miles)"),
        "distance_unit": ("Distance Unit",),
        "seconds": ("Seconds",),
        "note": ("Notes",),
    },
    kinds={"w": "warmup", "d": "drop", "f": "failure"},
)
_REQUIRED = {"title", "start", "exercise", "kind", "weight", "reps"}
_SET_NUMBER = re.compile(r"[0-9]+(\.0*)?")  # Strong's set order of a normal set

_POUND_KG, _MILE_M = Decimal("0.45359237"), Decimal("1609.344")
_KG = {"kg": Decimal(1), "lb": _POUND_KG, "lbs": _POUND_KG}
_METERS = {"m": Decimal(1), "km": Decimal(1000), "mi": _MILE_M, "miles": _MILE_M}
_UNITS = {"weight": _KG, "distance": _METERS | {"meters": Decimal(1)}}
_UNIT_IN_NAME = re.compile(r"[_(](kg|lbs?|meters|km|miles)\)?$")
# A bare "Weight" or "Distance" follows a setting of the app that the file does not tell.
_ASSUMED_UNIT = {"weight": "kg", "distance": "km"}
# In kg and m. More than anyone does in one set, so such a number is a slip or a broken column.
_MOST = {"weight": 2000, "reps": 10_000, "rpe": 10, "seconds": 86_400, "distance": 1_000_000}
_DECIMALS = {"weight": 3, "seconds": 0}

# Phones set to a language with decimal commas export "62,5"; "1,000" could be one or a thousand.
_NUMBER = re.compile(r"-?(?:[0-9]{1,12}(?:\.[0-9]{0,30}|,[0-9]{1,2})?|\.[0-9]{1,30})")
_DURATION = re.compile(
    r"(?:([0-9]{1,5})h[a-z]*)?(?:([0-9]{1,6})m[a-z]*)?(?:([0-9]{1,8})s[a-z]*)?"
    r"|([0-9]{1,8})(?:\.[0-9]*)?"
)
_CLOCK = (
    r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))?(?:\s?(?P<half>[AP]M))?"
)
_TIMES = (
    re.compile(rf"(?P<day>[0-9]{{1,2}}) (?P<month>[A-Za-z]+) (?P<year>[0-9]{{4}}), {_CLOCK}"),
    re.compile(rf"(?P<year>[0-9]{{4}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}})[ T]{_CLOCK}"),
)
# Spelled out because strptime would read the month in the language of the locale.
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class NotAnExport(ValueError):
    """The file is no Strong or Hevy export; `found` says in plain words what it is instead."""

    def __init__(self, found: str) -> None:
        known = "; ".join(
            f"{layout.app.title()} has {', '.join(names[0] for names in layout.columns.values())}"
            for layout in (_HEVY, _STRONG)
        )
        super().__init__(f"not a Strong or Hevy export: {found}. Known columns: {known}")
        self.found = found


class _BadRow(ValueError):
    """The reason why a row is left out."""


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a file keeps each of our fields (0-based columns), and the units its names state."""

    layout: _Layout
    delimiter: str
    width: int
    position: Mapping[str, int]
    unit: Mapping[str, str]


@dataclass(slots=True)
class _OpenWorkout:
    """A workout still being collected: its rows need not be adjacent."""

    title: str
    started_at_ms: int
    ended_at_ms: int
    note: str = ""
    sets: list[LoggedSet] = field(default_factory=list)
    exercise_notes: dict[str, list[str]] = field(default_factory=dict)

    def close(self) -> LoggedWorkout:
        sets = []
        for logged in self.sets:
            # As in Hevy, a note on the exercise goes with each of its sets.
            notes = [*self.exercise_notes.get(logged.exercise, ()), logged.note]
            sets.append(replace(logged, note="\n".join(filter(None, notes))))
        return LoggedWorkout(
            self.title, self.started_at_ms, self.ended_at_ms, self.note, tuple(sets)
        )


def read_export(path: Path) -> TrainingExport:
    """Read a Strong or Hevy export, UTF-8 with or without a byte order mark.

    Raises:
        NotAnExport: the file is no such export, or no UTF-8 text.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise NotAnExport(f"byte {exc.start} is not UTF-8 text") from exc
    return parse_export(text)


def parse_export(text: str) -> TrainingExport:
    """Parse the text of a Strong or Hevy export; the header decides which, in any column order.

    Returns: workouts that have a set at least, oldest first. Rows that make no sense are in
    `skipped`; Strong's rest timer rows are neither, and its note rows end up in the sets' notes.

    Raises:
        NotAnExport: the first row is not the header of a known layout, or the text is binary.
    """
    if "\0" in text:
        raise NotAnExport("the text holds NUL bytes")
    text = text.removeprefix("\ufeff")
    header = _read_header(text)
    workouts: dict[tuple[int, str], _OpenWorkout] = {}
    skipped: list[SkippedRow] = []
    rows = _read_rows(text, header.delimiter)
    next(rows)
    for line, row in rows:
        try:
            if isinstance(row, _BadRow):
                raise row
            if row:
                _take_row(header, line, row, workouts)
        except _BadRow as exc:
            skipped.append(SkippedRow(line, str(exc)))
    closed = [workout.close() for workout in workouts.values() if workout.sets]
    closed.sort(key=lambda workout: workout.started_at_ms)
    return TrainingExport(header.layout.app, tuple(closed), tuple(skipped))


def _read_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | _BadRow]]:
    # Strict, so that a quote left open fails at the next quoted cell: reading goes on with the
    # line after that, instead of the rest of the file becoming one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield line, _BadRow(f"broken quoting or too long, up to line {reader.line_num}: {exc}")


def _read_header(text: str) -> _Header:
    if not text.strip():
        raise NotAnExport("the file is empty")
    found = "its first line is no row of columns"
    for delimiter in (",", ";"):
        _, row = next(_read_rows(text, delimiter), (1, list[str]()))
        if isinstance(row, _BadRow) or not row:
            continue
        names = [name.strip() for name in row]
        if len(names) > 1 or delimiter == ",":
            found = f"its columns are {_shown(', '.join(names), most_chars=200)}"
        for layout in (_HEVY, _STRONG):
            position = _find_columns(layout, names)
            if position is not None:
                unit = dict(_ASSUMED_UNIT)
                for name in unit.keys() & position.keys():
                    if stated := _UNIT_IN_NAME.search(names[position[name]]):
                        unit[name] = stated[1]
                return _Header(layout, delimiter, len(row), position, unit)
    raise NotAnExport(found)


def _find_columns(layout: _Layout, names: list[str]) -> dict[str, int] | None:
    position: dict[str, int] = {}
    for our_name, spellings in layout.columns.items():
        columns = [at for at, name in enumerate(names) if name in spellings]
        if len(columns) > 1:  # which of them counts would be a guess
            return None
        if columns:
            position[our_name] = columns[0]
    return position if position.keys() >= _REQUIRED else None


def _take_row(
    header: _Header, line: int, row: list[str], workouts: dict[tuple[int, str], _OpenWorkout]
) -> None:
    if len(row) != header.width:
        raise _BadRow(f"{len(row)} columns where the header has {header.width}")
    cells = {name: row[at].strip().replace("\r\n", "\n") for name, at in header.position.items()}
    # Strong also writes rows that are no sets; only the set order tells them apart.
    strong_row = cells["kind"].lower() if header.layout is _STRONG else ""
    if strong_row == "rest timer":
        return
    if not cells["exercise"]:
        raise _BadRow("no exercise name")
    started_at_ms = _read_time("start", cells["start"])
    ended_at_ms = _read_end(cells, started_at_ms)
    key = (started_at_ms, cells["title"])
    workout = workouts.setdefault(key, _OpenWorkout(cells["title"], started_at_ms, ended_at_ms))
    workout.ended_at_ms = max(workout.ended_at_ms, ended_at_ms)
    workout.note = workout.note or cells.get("workout_note", "")
    if strong_row == "note":
        workout.exercise_notes.setdefault(cells["exercise"], []).append(cells.get("note", ""))
    else:
        workout.sets.append(_read_set(header, line, len(workout.sets), cells))


def _read_set(header: _Header, line: int, order: int, cells: Mapping[str, str]) -> LoggedSet:
    weight_kg = _read_number(cells, "weight", header.unit)
    distance_m = _read_number(cells, "distance", header.unit)
    reps, seconds, rpe = (_read_number(cells, name) for name in ("reps", "seconds", "rpe"))
    if reps is not None and reps % 1:
        raise _BadRow(f"reps is not whole: {_shown(cells['reps'])}")
    if reps is seconds is distance_m is None:
        raise _BadRow("set not done: no reps, seconds or distance")
    return LoggedSet(
        line=line,
        exercise=cells["exercise"],
        order=order,
        kind=_read_kind(header.layout, cells["kind"]),
        weight_kg=None if weight_kg is None else float(weight_kg),
        reps=None if reps is None else int(reps),
        seconds=None if seconds is None else int(seconds),
        distance_m=None if distance_m is None else float(distance_m),
        rpe=None if rpe is None else float(rpe),
        note=cells.get("note", ""),
        superset=cells.get("superset") or None,
    )


def _read_kind(layout: _Layout, text: str) -> SetKind:
    if layout is _STRONG and _SET_NUMBER.fullmatch(text):
        return "normal"
    kind = layout.kinds.get(text.lower())
    if kind is None:
        raise _BadRow(f"unknown set type: {_shown(text)}")
    return kind


def _read_number(
    cells: Mapping[str, str], name: str, unit: Mapping[str, str] | None = None
) -> Decimal | None:
    """The number in a cell, in kg or m where it has a unit; None if it is empty or 0."""
    text = cells.get(name, "")
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise _BadRow(f"{name} is not a number: {_shown(text)}")
    value = Decimal(text.replace(",", "."))
    if value < 0:
        raise _BadRow(f"{name} is negative: {_shown(text)}")
    if value and unit is not None:
        stated = cells.get(f"{name}_unit", unit[name]).lower().removesuffix(".")
        if stated not in _UNITS[name]:
            raise _BadRow(f"{name} {_shown(text)} has no known unit: {_shown(stated)}")
        value *= _UNITS[name][stated]
    if value > _MOST[name]:
        raise _BadRow(f"{name} is out of range: {_shown(text)}")
    return (round(value, _DECIMALS[name]) if name in _DECIMALS else value) or None


def _read_time(name: str, text: str) -> int:
    """Unix time in milliseconds."""
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _TIMES)), None)
    try:
        if found is None:
            raise ValueError
        year, day, hour, minute = (int(found[part]) for part in ("year", "day", "hour", "minute"))
        # English dates shorten September to three letters or to four.
        month = found["month"].lower().replace("sept", "sep")
        month_number = int(month) if month.isdigit() else _MONTHS.index(month) + 1
        if found["half"]:
            hour = hour % 12 + (12 if found["half"] == "PM" else 0)
        second = int(found["second"] or 0)
        moment = datetime(year, month_number, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _BadRow(f"{name} is not a date and time: {_shown(text)}") from None
    return int(moment.timestamp()) * 1000


def _read_end(cells: Mapping[str, str], started_at_ms: int) -> int:
    """The end in Unix milliseconds: the start itself if none is given or it lies before."""
    if end := cells.get("end"):
        return max(started_at_ms, _read_time("end", end))
    found = _DURATION.fullmatch("".join(cells.get("duration", "").lower().split()))
    if found is None:
        raise _BadRow(f"duration is not a length of time: {_shown(cells['duration'])}")
    hours, minutes, seconds, only_seconds = (int(part or 0) for part in found.groups())
    return started_at_ms + (hours * 3600 + minutes * 60 + seconds + only_seconds) * 1000


def _shown(text: str, most_chars: int = 40) -> str:
    return repr(text if len(text) <= most_chars else text[:most_chars] + "…")
