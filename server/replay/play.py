"""A training export played through real sockets, against a server of its own or running ones."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crdt.schema import Visibility
from server.app import create_app
from server.auth import Authenticator
from server.http_rules import make_runner
from server.replay.check import Problem, check_records, check_workout, told_records
from server.replay.devices import CallFailed, Lost, Refused
from server.replay.exports import LoggedWorkout, NotAnExport, read_export
from server.replay.lifter import Lifter
from server.replay.plan import plan_workout
from server.replay.report import Report
from server.replay.session import Session
from server.replay.templates import TemplateRoom
from server.replay.truth import Best, best_of, figures, fitted
from server.settings import KEY_SETTINGS, Settings

EXIT_UNUSABLE = 2
"""The exit code for a file that is no export, and for a server that cannot be used."""

DEFAULT_USER_ID = "lifter"

_FAILURES = (CallFailed, Lost, Refused, TimeoutError)


async def replay(
    settings: Settings,
    path: Path,
    *,
    urls: Sequence[str] = (),
    user_id: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    pace: float | None = None,
) -> int:
    """Play an export, check what came out, and print a report.

    Args:
        urls: running instances of one server, which takes this environment's tokens; the devices
            are spread over them. Without any, a server is started.
        user_id: whose training it is; on a running server somebody new unless given.
        limit: play the first so many workouts only.
        seed: the same seed has the same accidents in the same places.
        pace: sets a second; without one it goes as fast as it can.
    Returns: 0 when nothing was lost, doubled or unequal, 1 otherwise, 2 when it cannot be played.
    Raises:
        SettingsError: tokens cannot be signed here.
    """
    try:
        export = read_export(path)
    except (NotAnExport, OSError) as exc:
        return _refuse(f"{path}: {exc}")
    try:
        async with _server(settings, urls) as (base_urls, auth):
            who = user_id or (f"lifter-{uuid4().hex[:8]}" if urls else DEFAULT_USER_ID)
            lifter = Lifter(base_urls, lambda id_, role: auth.sign(id_, role=role), who, pace=pace)
            async with lifter:
                playback = Playback(
                    lifter,
                    Report(
                        f"{path.name} ({export.app.title()}) as {who}", export.skipped, lifter.tally
                    ),
                    seed=seed,
                    may_have_trained=bool(urls) and user_id is not None,
                )
                workouts = [fitted(workout) for workout in export.workouts[:limit]]
                report = await playback.play(_with_progress(workouts))
    except Refused as exc:
        return _refuse(f"{', '.join(urls) or 'the server'}: {exc}")
    report.show(Console(file=sys.stdout))
    return report.exit_code


class Playback:
    """Workouts one after the other: a lifter has one active at a time."""

    def __init__(
        self,
        lifter: Lifter,
        report: Report,
        *,
        seed: int,
        may_have_trained: bool,
        visibility: Visibility = "private",
    ) -> None:
        self._may_have_trained = may_have_trained
        self._visibility: Visibility = visibility
        self._lifter = lifter
        self._seed = seed
        self._best: Best = {}
        self._told: list[tuple[str, str, float]] = []
        self._volume_kg = Fraction(0)
        self._report = report

    async def play(self, workouts: Iterable[LoggedWorkout]) -> Report:
        """Play them until one fails. Returns: the report, with what was found."""
        report = self._report
        templates: dict[str, dict[str, Any]] = {}
        for index, workout in enumerate(workouts):
            try:
                if workout.title not in templates:
                    templates[workout.title] = await self._make_template(workout)
                await self._play_workout(index, workout, templates[workout.title])
            except Exception as exc:
                failures = list(_leaves(exc))
                if not all(isinstance(failure, _FAILURES) for failure in failures):
                    raise
                text = "; ".join(str(failure) or repr(failure) for failure in failures)
                report.problems.append(Problem("stopped", _where(index, workout), text))
                break
        else:
            report.problems += check_records(
                self._told, self._best, may_lack=self._may_have_trained
            )
        if self._may_have_trained:
            report.remarks.append("Records count from what this user had reached before.")
        report.records = len(self._best)
        report.volume_kg = float(self._volume_kg)
        return report

    async def _make_template(self, first: LoggedWorkout) -> dict[str, Any]:
        chance = random.Random(f"{self._seed}/{first.title}")
        room = TemplateRoom(self._lifter, first, chance)
        made = await room.make()
        self._report.problems += room.problems
        self._report.templates += 1
        return made

    async def _play_workout(
        self, index: int, workout: LoggedWorkout, template: dict[str, Any]
    ) -> None:
        plan = plan_workout(workout, self._best, seed=self._seed, index=index)
        session = Session(
            self._lifter, plan, template, _where(index, workout), visibility=self._visibility
        )
        seen = await session.play()
        self._report.problems += [*session.problems, *check_workout(seen)]
        self._told += told_records(seen)
        self._best = best_of(workout.sets, self._best)
        done = figures(workout.sets)
        self._volume_kg += done.volume_kg
        self._report.workouts += 1
        self._report.sets += done.sets


@asynccontextmanager
async def _server(
    settings: Settings, urls: Sequence[str]
) -> AsyncIterator[tuple[Sequence[str], Authenticator]]:
    """The running instances at `urls`; without any, a server in this process, gone at the end."""
    if urls:
        yield [url.rstrip("/") for url in urls], Authenticator.from_settings(settings)
        return
    async with temporary_server(settings) as (url, auth):
        yield [url], auth


@asynccontextmanager
async def temporary_server(
    settings: Settings, port: int = 0
) -> AsyncIterator[tuple[str, Authenticator]]:
    """A server in this process, on this machine's own address, gone at the end with its data.

    Yields its address, and who signs tokens for it.
    Raises:
        OSError: it cannot listen on the port.
    """
    with tempfile.TemporaryDirectory(prefix="repsync-replay-") as folder:
        own = settings.model_copy(
            update={
                "host": "127.0.0.1",
                "data_dir": Path(folder),
                "mongodb_uri": None,
                **dict.fromkeys(KEY_SETTINGS),
            }
        )
        runner = make_runner(create_app(own), own, shutdown_timeout_s=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, own.host, port).start()
            url = f"http://{own.host}:{runner.addresses[0][1]}"
            yield url, Authenticator.from_settings(own)
        finally:
            await runner.cleanup()


def _with_progress(workouts: Sequence[LoggedWorkout]) -> Iterator[LoggedWorkout]:
    """The workouts, while a bar on the terminal shows how far they are."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("sets"), TimeElapsedColumn())
    what = TextColumn("{task.description}", markup=False)
    with Progress(
        what, *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=sum(len(workout.sets) for workout in workouts))
        for workout in workouts:
            progress.update(bar, description=workout.title)
            yield workout
            progress.advance(bar, len(workout.sets))


def _where(index: int, workout: LoggedWorkout) -> str:
    return f"workout {index + 1} ({workout.title})"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _refuse(reason: str) -> int:
    print(f"repsync: {reason}", file=sys.stderr)
    return EXIT_UNUSABLE
