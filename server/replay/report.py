"""What a replay says at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from server.replay.check import Problem
from server.replay.exports import SkippedRow
from server.replay.lifter import Tally

MOST_SHOWN = 50


@dataclass(slots=True)
class Report:
    """The outcome of a replay; `records` counts the best values, one an exercise and type."""

    title: str
    skipped: Sequence[SkippedRow]
    tally: Tally = field(default_factory=Tally)
    workouts: int = 0
    templates: int = 0
    sets: int = 0
    volume_kg: float = 0.0
    records: int = 0
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def are_equal(self) -> bool:
        """Whether all replicas were compared and were equal."""
        return not any(problem.kind in ("unequal", "stopped") for problem in self.problems)

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0

    def show(self, console: Console) -> None:
        console.print(self.title, markup=False, highlight=False, soft_wrap=True)
        table = Table(show_header=False)
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in self._rows():
            table.add_row(name, value)
        console.print(table)
        for remark in self.remarks:
            console.print(remark, markup=False, highlight=False)
        skipped = [f"  line {row.line}: {row.reason}" for row in self.skipped]
        problems = [f"  {item.kind}: {item.where}: {item.text}" for item in self.problems]
        _show_list(console, "Rows skipped", skipped)
        _show_list(console, "Problems", problems)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("workouts", str(self.workouts)),
            ("templates", str(self.templates)),
            ("sets", str(self.sets)),
            ("volume (kg)", _number(self.volume_kg)),
            ("records", str(self.records)),
            ("reconnects", str(self.tally.reconnects)),
            ("edits made offline", str(self.tally.offline_edits)),
            ("operations resent", str(self.tally.resent)),
            ("propagation p50 (ms)", _percentile(self.tally.propagation_ms, 50)),
            ("propagation p99 (ms)", _percentile(self.tally.propagation_ms, 99)),
            ("rows skipped", str(len(self.skipped))),
            ("problems", str(len(self.problems))),
            ("all replicas equal", "yes" if self.are_equal else "no"),
        ]


def _show_list(console: Console, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    rest = len(lines) - MOST_SHOWN
    shown = [f"{title}:", *lines[:MOST_SHOWN], *([f"  … and {rest} more"] if rest > 0 else [])]
    console.print("\n".join(shown), markup=False, highlight=False, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def _percentile(samples: Sequence[float], percent: int) -> str:
    """The value that so many percent of the samples do not exceed."""
    if not samples:
        return "–"
    rank = -(-len(samples) * percent // 100)
    return f"{sorted(samples)[rank - 1]:.1f}"
