"""Exports of Strong and Hevy become typed workouts, and nothing in a file is lost unreported."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.replay.exports import (
    LoggedSet,
    NotAnExport,
    TrainingExport,
    parse_export,
    read_export,
)

DATA = Path(__file__).parents[2] / "data"
HEVY_HEADER = (
    "title,start_time,end_time,description,exercise_title,superset_id,exercise_notes,"
    "set_index,set_type,weight_kg,reps,distance_km,duration_seconds,rpe"
)
HEVY_ROW = {
    "title": "Push",
    "start_time": "2 Jan 2025, 08:00",
    "end_time": "2 Jan 2025, 08:45",
    "exercise_title": "Dip",
    "set_type": "normal",
    "weight_kg": "10",
    "reps": "8",
    "duration_seconds": "0",
}
STRONG_HEADER = (
    "Date,Workout Name,Duration,Exercise Name,Set Order,Weight,Reps,Distance,Seconds,RPE"
)
STRONG_ROW = {
    "Date": "2025-01-02 08:00:00",
    "Workout Name": "Push",
    "Duration": "45m",
    "Exercise Name": "Dip",
    "Set Order": "1",
    "Weight": "10.0",
    "Reps": "8.0",
    "Distance": "0",
    "Seconds": "0.0",
}


def row(header: str, cells: dict[str, str]) -> str:
    return ",".join(f'"{cells.get(name, "")}"' for name in header.split(","))


def hevy(*changes: dict[str, str], header: str = HEVY_HEADER) -> TrainingExport:
    return parse_export("\n".join([header, *(row(header, HEVY_ROW | c) for c in changes)]))


def strong(*changes: dict[str, str], header: str = STRONG_HEADER) -> TrainingExport:
    return parse_export("\n".join([header, *(row(header, STRONG_ROW | c) for c in changes)]))


def sets_of(export: TrainingExport) -> list[LoggedSet]:
    return [logged for workout in export.workouts for logged in workout.sets]


def reasons(export: TrainingExport) -> list[tuple[int, str]]:
    return [(skipped.line, skipped.reason) for skipped in export.skipped]


def utc_ms(*moment: int) -> int:
    year, month, day, hour, minute, second = (*moment, 0)[:6]
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1000


def measures(sets: Sequence[LoggedSet]) -> list[tuple[object, ...]]:
    return [(s.kind, s.weight_kg, s.reps, s.seconds, s.distance_m, s.rpe) for s in sets]


class TestHevy:
    @pytest.fixture
    def export(self) -> TrainingExport:
        return read_export(DATA / "hevy.csv")

    def test_workouts_come_oldest_first_though_the_file_is_newest_first(
        self, export: TrainingExport
    ) -> None:
        assert export.app == "hevy"
        assert [workout.title for workout in export.workouts] == [
            "Lantern Pull",
            "Quarry Legs",
            "Harbour Push",
        ] * 2
        assert export.workouts[0].started_at_ms == utc_ms(2025, 3, 9, 10, 41)
        assert export.workouts[0].ended_at_ms == utc_ms(2025, 3, 9, 11, 22)

    def test_every_kind_of_set_is_read(self, export: TrainingExport) -> None:
        kinds = Counter(logged.kind for logged in sets_of(export))
        assert kinds == {"normal": 36, "warmup": 8, "drop": 2, "failure": 1}
        assert [s.order for s in export.workouts[5].sets] == list(range(11))

    def test_bodyweight_sets_holds_and_runs_have_no_weight(self, export: TrainingExport) -> None:
        by_exercise = {logged.exercise: logged for logged in sets_of(export)}
        assert measures([by_exercise[name] for name in ("Dip", "Plank", "Treadmill")]) == [
            ("normal", None, 10, None, None, 9.0),
            ("normal", None, None, 45, None, None),
            ("normal", None, None, 480, 1200.0, None),
        ]

    def test_exercises_of_a_superset_share_its_name(self, export: TrainingExport) -> None:
        newest = export.workouts[-1]
        assert {s.exercise for s in newest.sets if s.superset == "1"} == {
            "Dip",
            "Lateral Raise (Dumbbell)",
        }
        assert {s.superset for s in newest.sets} == {None, "1"}

    def test_notes_keep_their_line_breaks_and_quotes(self, export: TrainingExport) -> None:
        notes = {logged.exercise: logged.note for logged in sets_of(export) if logged.note}
        assert notes == {
            "Lateral Raise (Dumbbell)": "Elbows lead,\nhands follow",
            "Bent Over Row (Barbell)": 'Strap in; "dead stop" reps',
        }
        assert export.workouts[4].note == "Knee felt fine"

    def test_line_numbers_count_the_line_breaks_in_notes(self, export: TrainingExport) -> None:
        lines = (DATA / "hevy.csv").read_text(encoding="utf-8").splitlines()
        for logged in sets_of(export):
            assert logged.exercise in lines[logged.line - 1]

    def test_a_set_that_was_not_done_is_reported(self, export: TrainingExport) -> None:
        assert reasons(export) == [(22, "set not done: no reps, seconds or distance")]

    def test_pounds_and_miles_are_converted(self) -> None:
        header = HEVY_HEADER.replace("weight_kg", "weight_lbs").replace("_km", "_miles")
        export = hevy({"weight_lbs": "225", "distance_miles": "0.5"}, header=header)
        assert measures(sets_of(export)) == [("normal", 102.058, 8, None, 804.672, None)]


class TestStrong:
    def test_the_layout_without_units_is_read_in_kg_and_km(self) -> None:
        export = read_export(DATA / "strong.csv")
        ridge, brook = export.workouts
        assert export.app == "strong"
        assert measures(ridge.sets) == [
            ("warmup", 60.0, 5, None, None, None),
            ("normal", 110.0, 5, None, None, 8.0),
            ("normal", 110.0, 5, None, None, 8.5),
            ("failure", 110.0, 4, None, None, 10.0),
            ("normal", None, None, 40, None, None),
            ("normal", None, None, 420, 1500.0, None),
        ]
        assert [s.kind for s in brook.sets] == ["normal", "normal", "drop", "normal"]
        assert ridge.note == "Slept badly"
        assert ridge.sets[2].note == "Hook grip\nfrom here on"
        assert [s.line for s in ridge.sets] == [2, 3, 5, 7, 8, 9]
        assert export.skipped == ()

    def test_the_layout_with_units_in_each_row_follows_them(self) -> None:
        export = read_export(DATA / "strong-units-in-rows.csv")
        (workout,) = export.workouts
        assert measures(workout.sets) == [
            ("normal", 61.235, 5, None, None, 7.5),
            ("normal", 62.5, 5, None, None, 8.0),
            ("normal", None, 20, None, None, None),
            ("normal", None, None, 840, 2414.016, None),
        ]
        assert workout.sets[1].note == "Belt; last hole"
        assert workout.ended_at_ms == workout.started_at_ms == utc_ms(2021, 2, 3, 12, 0, 5)

    def test_the_layout_with_units_in_the_column_names_follows_those(self) -> None:
        export = read_export(DATA / "strong-units-in-names.csv")
        (workout,) = export.workouts
        assert measures(workout.sets) == [
            ("warmup", 43.091, 10, None, None, None),
            ("normal", 102.058, 8, None, None, 8.0),
            ("normal", 31.751, None, 35, 40.0, None),
        ]
        assert workout.ended_at_ms - workout.started_at_ms == 2_700_000
        assert workout.note == "Short on time"

    def test_a_note_row_goes_with_each_set_of_its_exercise(self) -> None:
        export = read_export(DATA / "strong-units-in-names.csv")
        assert [logged.note for logged in sets_of(export)] == [
            "Pad under the bar",
            "Pad under the bar\nHold at the top",
            "",
        ]
        assert export.skipped == ()

    @pytest.mark.parametrize(
        ("duration", "length_s"),
        [
            ("35m", 2100),
            ("1h 5m", 3900),
            ("45s", 45),
            ("1h 5m 3s", 3903),
            ("38min", 2280),
            ("90", 90),
            ("90.0", 90),
            ("", 0),
            ("0", 0),
        ],
    )
    def test_the_duration_sets_the_end(self, duration: str, length_s: int) -> None:
        (workout,) = strong({"Duration": duration}).workouts
        assert workout.ended_at_ms - workout.started_at_ms == length_s * 1000

    @pytest.mark.parametrize(
        ("time", "expected"),
        [
            ("2025-01-02 08:00:09", utc_ms(2025, 1, 2, 8, 0, 9)),
            ("2025-01-02 8:00:09\u202fPM", utc_ms(2025, 1, 2, 20, 0, 9)),
            ("2025-01-02 12:30:00 AM", utc_ms(2025, 1, 2, 0, 30)),
        ],
    )
    def test_starts_are_read_on_either_clock(self, time: str, expected: int) -> None:
        assert strong({"Date": time}).workouts[0].started_at_ms == expected

    def test_a_weight_without_a_known_unit_is_not_guessed(self) -> None:
        header = f"{STRONG_HEADER},Weight Unit"
        export = strong({"Weight Unit": ""}, {"Weight Unit": "stone"}, header=header)
        assert reasons(export) == [
            (2, "weight '10.0' has no known unit: ''"),
            (3, "weight '10.0' has no known unit: 'stone'"),
        ]


class TestAnyExport:
    @pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.csv")))
    def test_marks_and_line_ends_of_any_system_make_no_difference(
        self, name: str, tmp_path: Path
    ) -> None:
        text = (DATA / name).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        for mark in ("", "\ufeff"):
            for line_end in ("\n", "\r\n"):
                copy = tmp_path / name
                copy.write_bytes((mark + text.replace("\n", line_end)).encode())
                assert read_export(copy) == read_export(DATA / name)

    @pytest.mark.parametrize("name", ["hevy.csv", "strong.csv"])
    def test_the_order_of_columns_does_not_matter(self, name: str, tmp_path: Path) -> None:
        with (DATA / name).open(encoding="utf-8", newline="") as file:
            rows = [list(reversed(cells)) for cells in csv.reader(file)]
        mirrored = tmp_path / name
        with mirrored.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        assert measures(sets_of(read_export(mirrored))) == measures(
            sets_of(read_export(DATA / name))
        )

    def test_columns_that_nobody_knows_are_ignored(self) -> None:
        assert sets_of(hevy({}, header=f"{HEVY_HEADER},mood"))

    def test_rows_of_one_workout_need_not_be_adjacent(self) -> None:
        legs = {"title": "Legs", "start_time": "1 Jan 2025, 08:00"}
        export = hevy({"reps": "1"}, legs, {"reps": "2"})
        assert [(w.title, len(w.sets)) for w in export.workouts] == [("Legs", 1), ("Push", 2)]
        assert [(s.order, s.reps) for s in export.workouts[1].sets] == [(0, 1), (1, 2)]

    def test_workouts_of_two_names_at_one_time_stay_apart(self) -> None:
        assert [w.title for w in hevy({}, {"title": "Run"}).workouts] == ["Push", "Run"]

    @pytest.mark.parametrize("end", ["", "1 Jan 2025, 08:00"])
    def test_an_end_that_is_missing_or_too_early_is_the_start(self, end: str) -> None:
        (workout,) = hevy({"end_time": end}).workouts
        assert workout.ended_at_ms == workout.started_at_ms == utc_ms(2025, 1, 2, 8, 0)

    def test_zero_means_that_no_value_was_given(self) -> None:
        zeros = {"weight_kg": "0", "distance_km": "0.00", "rpe": "0"}
        assert measures(sets_of(hevy(zeros))) == [("normal", None, 8, None, None, None)]

    def test_a_header_alone_is_an_export_without_workouts(self) -> None:
        assert parse_export(HEVY_HEADER) == TrainingExport("hevy", (), ())

    def test_blank_lines_are_no_rows(self) -> None:
        export = parse_export(f"{HEVY_HEADER}\n\n{row(HEVY_HEADER, HEVY_ROW)}\n\n")
        assert [logged.line for logged in sets_of(export)] == [3]
        assert export.skipped == ()


class TestBadRows:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"weight_kg": "heavy"}, "weight is not a number: 'heavy'"),
            ({"weight_kg": "nan"}, "weight is not a number: 'nan'"),
            ({"weight_kg": "inf"}, "weight is not a number: 'inf'"),
            ({"weight_kg": "1e3"}, "weight is not a number: '1e3'"),
            ({"weight_kg": "1,000"}, "weight is not a number: '1,000'"),
            ({"weight_kg": "٣"}, "weight is not a number: '٣'"),
            ({"weight_kg": "-5"}, "weight is negative: '-5'"),
            ({"weight_kg": "2000.5"}, "weight is out of range: '2000.5'"),
            ({"reps": "7.5"}, "reps is not whole: '7.5'"),
            ({"reps": "10001"}, "reps is out of range: '10001'"),
            ({"rpe": "10.5"}, "rpe is out of range: '10.5'"),
            ({"rpe": "-1"}, "rpe is negative: '-1'"),
            ({"duration_seconds": "86401"}, "seconds is out of range: '86401'"),
            ({"distance_km": "1001"}, "distance is out of range: '1001'"),
            ({"set_type": "rest"}, "unknown set type: 'rest'"),
            ({"exercise_title": " "}, "no exercise name"),
            ({"end_time": "later"}, "end is not a date and time: 'later'"),
            ({"reps": "", "weight_kg": "40"}, "set not done: no reps, seconds or distance"),
        ],
    )  # fmt: skip
    def test_a_bad_row_is_reported_and_the_others_go_on(
        self, change: dict[str, str], reason: str
    ) -> None:
        export = hevy({}, change, {})
        assert reasons(export) == [(3, reason)]
        assert [logged.line for logged in sets_of(export)] == [2, 4]

    @pytest.mark.parametrize(
        "start", ["", "31 Feb 2025, 8:00", "2 Mai 2025, 8:00", "2 Jan 2025, 25:00", "2025-01-02"]
    )
    def test_a_row_without_a_readable_start_is_reported(self, start: str) -> None:
        export = hevy({"start_time": start})
        assert reasons(export) == [(2, f"start is not a date and time: {start!r}")]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"Set Order": "X"}, "unknown set type: 'X'"),
            ({"Set Order": ""}, "unknown set type: ''"),
            ({"Duration": "a while"}, "duration is not a length of time: 'a while'"),
        ],
    )
    def test_strong_rows_have_their_own_ways_to_be_bad(
        self, change: dict[str, str], reason: str
    ) -> None:
        assert reasons(strong(change)) == [(2, reason)]

    def test_a_row_of_another_width_is_reported(self) -> None:
        export = parse_export(f"{STRONG_HEADER}\n1,2,3\n{',' * 10}\n")
        assert reasons(export) == [
            (2, "3 columns where the header has 10"),
            (3, "11 columns where the header has 10"),
        ]

    def test_a_row_is_reported_at_the_line_where_it_starts(self) -> None:
        export = hevy({"exercise_notes": "one\ntwo"}, {"reps": "x", "exercise_notes": "a\nb"}, {})
        assert [line for line, _ in reasons(export)] == [4]
        assert [logged.line for logged in sets_of(export)] == [2, 6]

    def test_an_open_quote_costs_no_more_than_the_next_row(self) -> None:
        good = row(HEVY_HEADER, HEVY_ROW)
        export = parse_export("\n".join([HEVY_HEADER, good, good[:-1], good, good]))
        assert [logged.line for logged in sets_of(export)] == [2, 5]
        ((line, reason),) = reasons(export)
        assert line == 3
        assert reason.startswith("broken quoting or too long, up to line 4: ")

    def test_an_open_quote_at_the_end_is_reported(self) -> None:
        export = parse_export(f'{HEVY_HEADER}\n{row(HEVY_HEADER, HEVY_ROW)}\n"Push')
        assert [line for line, _ in reasons(export)] == [3]

    def test_a_huge_cell_is_reported_and_the_others_go_on(self) -> None:
        export = hevy({"exercise_notes": "x" * 200_000}, {"reps": "9" * 100_000}, {})
        assert [line for line, _ in reasons(export)] == [2, 3]
        assert all(len(reason) < 120 for _, reason in reasons(export))
        assert [logged.line for logged in sets_of(export)] == [4]


class TestNotAnExport:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"", "the file is empty"),
            (b"\xef\xbb\xbf \r\n", "the file is empty"),
            (b"\x89PNG\r\n\x1a\n", "byte 0 is not UTF-8 text"),
            ("Übung;Gewicht".encode("latin-1"), "byte 0 is not UTF-8 text"),
            (HEVY_HEADER.encode("utf-16-le"), "the text holds NUL bytes"),
            (b"date,exercise,kg\n1,2,3", "its columns are 'date, exercise, kg'"),
            (b"date;exercise;kg\n1;2;3", "its columns are 'date, exercise, kg'"),
            (b'"title', "its first line is no row of columns"),
            (HEVY_HEADER.replace("reps", "count").encode(), "its columns are 'title, start_time,"),
            (f"{HEVY_HEADER},weight_lbs".encode(), "its columns are 'title, start_time,"),
        ],
        ids=["empty", "blank", "image", "latin-1", "utf-16", "comma", "semicolon", "open quote",
             "column missing", "weight twice"],
    )  # fmt: skip
    def test_another_file_is_refused_with_what_was_found(
        self, content: bytes, found: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "file.csv"
        path.write_bytes(content)
        with pytest.raises(NotAnExport) as refused:
            read_export(path)
        assert refused.value.found.startswith(found)
        assert "Hevy has title, start_time" in str(refused.value)
        assert "Strong has Workout Name, Date" in str(refused.value)

    def test_a_missing_file_is_no_matter_of_its_format(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_export(tmp_path / "none.csv")


def assert_makes_sense(export: TrainingExport) -> None:
    starts = [workout.started_at_ms for workout in export.workouts]
    assert starts == sorted(starts)
    for workout in export.workouts:
        assert workout.ended_at_ms >= workout.started_at_ms
        assert [logged.order for logged in workout.sets] == list(range(len(workout.sets)))
        assert workout.sets
    for logged in sets_of(export):
        assert logged.exercise
        assert logged.reps or logged.seconds or logged.distance_m
        assert logged.weight_kg is None or 0 < logged.weight_kg <= 2000
        assert logged.rpe is None or 0 < logged.rpe <= 10


TELLING_CELLS = [*HEVY_ROW.values(), *STRONG_ROW.values(), "W", "Note", "Rest Timer", "0.0004"]
CELLS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(TELLING_CELLS),
    st.floats().map(str),
    st.integers().map(str),
)


class TestArbitraryText:
    @given(st.text())
    def test_any_text_is_parsed_or_refused(self, text: str) -> None:
        with suppress(NotAnExport):
            assert_makes_sense(parse_export(text))

    @given(st.sampled_from([HEVY_HEADER, STRONG_HEADER]), st.text(alphabet='",;\n\r 1aé\x0b\u2028'))
    def test_any_text_below_a_header_is_parsed(self, header: str, body: str) -> None:
        assert_makes_sense(parse_export(f"{header}\n{body}"))

    @given(st.data())
    def test_any_cells_in_a_row_are_kept_or_reported(self, data: st.DataObject) -> None:
        header, good = data.draw(
            st.sampled_from([(HEVY_HEADER, HEVY_ROW), (STRONG_HEADER, STRONG_ROW)])
        )
        changes = data.draw(st.dictionaries(st.sampled_from(header.split(",")), CELLS, max_size=4))
        cells = {name: cell.replace('"', "").replace("\0", "") for name, cell in changes.items()}
        export = parse_export(f"{header}\n{row(header, good | cells)}")
        assert_makes_sense(export)
        set_order = cells.get("Set Order", "").strip().lower()
        expected = 0 if set_order in ("note", "rest timer") else 1
        assert len(sets_of(export)) + len(export.skipped) >= expected


@pytest.mark.skipif(
    "REPSYNC_EXPORTS_DIR" not in os.environ,
    reason="REPSYNC_EXPORTS_DIR names no folder of real Strong and Hevy exports",
)
class TestRealExports:
    def test_every_row_is_a_set_or_is_reported(self) -> None:
        paths = sorted(Path(os.environ["REPSYNC_EXPORTS_DIR"]).glob("*.csv"))
        assert paths, "the folder holds no CSV file"
        for path in paths:
            export = read_export(path)
            with path.open(encoding="utf-8-sig", newline="") as file:
                delimiter = max(",;", key=file.readline().count)
                file.seek(0)
                rows = list(csv.DictReader(file, delimiter=delimiter))
            data_rows = [r for r in rows if r.get("Set Order") not in ("Rest Timer", "Note")]
            assert len(sets_of(export)) + len(export.skipped) == len(data_rows), path.name
            # A misread column or date format would turn most rows into reports.
            assert len(export.skipped) <= 0.02 * len(data_rows), (path.name, reasons(export))
            assert_makes_sense(export)
