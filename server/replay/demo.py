"""People who train until they are stopped, so that there is something to see on the page at `/`.

Some replay the workouts of `demo.csv` by themselves, each with a phone, a laptop and a watch that
keeps losing its connection; some train together in one workout. Each round is a little heavier than
the one before, so records go on falling. All that they leave behind goes with the server.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.auth import Authenticator
from server.replay.devices import CallFailed, EventClient, Lost, Refused
from server.replay.exports import LoggedWorkout, read_export
from server.replay.lifter import Lifter
from server.replay.play import Playback, temporary_server
from server.replay.report import Report
from server.replay.truth import exercises_of
from server.settings import Settings, SettingsError
from server.signals import until_stopped

EXPORT = Path(__file__).with_name("demo.csv")
HEAVIER = 1.02
BETWEEN_WORKOUTS_S = 3.0
AFTER_A_FAILURE_S = 5.0
TOKEN_TTL_S = 7 * 86_400

SOLO = {"ana": "Ana", "ben": "Ben"}
GROUP = {"cleo": "Cleo", "dan": "Dan", "eve": "Eve"}
"""User id -> name."""

_FAILURES = (CallFailed, Lost, Refused, TimeoutError)


async def demo(settings: Settings, *, pace: float) -> int:
    """Serve on the configured port and have people train there, until SIGINT or SIGTERM.

    Args:
        pace: sets a second of each of them.
    Raises:
        SettingsError: the port cannot be had.
    """
    stop = until_stopped()
    try:
        async with temporary_server(settings, settings.port) as (url, auth):
            token = auth.sign("operator", name="Operator", role="admin", ttl_s=TOKEN_TTL_S)
            print(
                f"RepSync's demo serves {url}\n"
                f"  token for the dashboard  {token}\n"
                f"  {len(SOLO) + len(GROUP)} people train there until Ctrl-C; "
                "what they do is not kept",
                flush=True,
            )
            await _train(url, auth, pace, stop)
    except OSError as exc:
        raise SettingsError(
            f"cannot listen on port {settings.port}: {exc.strerror or exc}; set PORT to a free one"
        ) from exc
    return 0


async def _train(url: str, auth: Authenticator, pace: float, stop: asyncio.Event) -> None:
    workouts = read_export(EXPORT).workouts
    people: list[Callable[[], Coroutine[Any, Any, None]]] = [
        lambda user_id=user_id, name=name, seed=seed: _replay(  # type: ignore[misc]
            url, auth, user_id, name, workouts, pace=pace, seed=seed
        )
        for seed, (user_id, name) in enumerate(SOLO.items())
    ]
    people.append(lambda: _train_together(url, auth, workouts, pace))
    training = [asyncio.create_task(_again_and_again(who)) for who in people]
    stopped = asyncio.create_task(stop.wait())
    try:
        # They never end by themselves, unless by a fault of ours.
        ended, _ = await asyncio.wait([*training, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in ended - {stopped}:
            task.result()
    finally:
        for task in (*training, stopped):
            task.cancel()
        await asyncio.gather(*training, stopped, return_exceptions=True)


async def _again_and_again(train: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await train()
        except* _FAILURES as failures:
            print(f"repsync: {failures.exceptions[0]!r}", file=sys.stderr)
        await asyncio.sleep(AFTER_A_FAILURE_S)


async def _replay(
    url: str,
    auth: Authenticator,
    user_id: str,
    name: str,
    workouts: tuple[LoggedWorkout, ...],
    *,
    pace: float,
    seed: int,
) -> None:
    """One lifter by themselves, until something fails."""

    def sign(id_: str, role: str) -> str:
        return auth.sign(id_, name=name if id_ == user_id else f"{name}'s trainer", role=role)

    async with Lifter([url], sign, user_id, pace=pace) as lifter:
        playback = Playback(
            lifter,
            Report(f"demo as {user_id}", (), lifter.tally),
            seed=seed,
            may_have_trained=True,
            visibility="public",
        )
        # Not everybody begins with the same workout.
        mine = workouts[seed % len(workouts) :] + workouts[: seed % len(workouts)]
        report = await playback.play(_rounds(mine))
    for problem in report.problems:
        print(f"repsync: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)


async def _train_together(
    url: str, auth: Authenticator, workouts: tuple[LoggedWorkout, ...], pace: float
) -> None:
    """A group in one workout after the other, until something fails."""
    async with AsyncExitStack() as stack:
        phones: list[EventClient] = []
        for user_id, name in GROUP.items():
            token = auth.sign(user_id, name=name, ttl_s=TOKEN_TTL_S)
            phone = EventClient(url, token, {"id": f"{user_id}-phone", "name": "Phone"})
            stack.push_async_callback(phone.close)
            phones.append(await phone.connect())
        if active := phones[0].welcome["active_workout"]:
            await phones[0].do("workout:abandon", {"workout_id": active})  # of before a failure
        for workout in _rounds(workouts):
            await _one_workout_together(phones, workout, pace)
            await asyncio.sleep(BETWEEN_WORKOUTS_S)


async def _one_workout_together(
    phones: list[EventClient], workout: LoggedWorkout, pace: float
) -> None:
    owner = phones[0]
    title = f"{workout.title}, together"
    made = await owner.do(
        "workout:create", {"title": title, "mode": "group", "visibility": "public"}
    )
    about = {"workout_id": made["workout"]["id"]}
    exercise_ids: dict[str, str] = {}
    for name, sets in exercises_of(workout.sets).items():
        target = [{"kind": logged.kind} for logged in sets]
        exercise = {"name": name, "target": target}
        answer = await owner.do("workout:exercise:add", {**about, "exercise": exercise})
        exercise_ids[name] = answer["exercise_id"]
    await owner.do("workout:start", about)
    async with asyncio.TaskGroup() as group:
        for place, phone in enumerate(phones):
            # One is stronger and slower than the other.
            done = _heavier(workout, 1 + place / 10)
            group.create_task(_lift(phone, about, exercise_ids, done, pace=pace * (1 - place / 10)))
    await owner.do("workout:complete", about)
    for phone in phones:
        await phone.do("workout:leave", about)


async def _lift(
    phone: EventClient,
    about: Mapping[str, str],
    exercise_ids: Mapping[str, str],
    workout: LoggedWorkout,
    *,
    pace: float,
) -> None:
    await phone.do("workout:join", dict(about))
    for logged in workout.sets:
        await asyncio.sleep(1 / pace)
        fields = {
            "kind": logged.kind,
            "weight_kg": logged.weight_kg,
            "reps": logged.reps,
            "seconds": logged.seconds,
        }
        await phone.do(
            "workout:set:complete",
            {
                **about,
                "exercise_id": exercise_ids[logged.exercise],
                "set": {key: value for key, value in fields.items() if value is not None},
            },
        )


def _rounds(workouts: tuple[LoggedWorkout, ...]) -> Iterator[LoggedWorkout]:
    """All workouts in their order, again and again, heavier each time."""
    for round_ in itertools.count():
        for workout in workouts:
            yield _heavier(workout, HEAVIER**round_)


def _heavier(workout: LoggedWorkout, factor: float) -> LoggedWorkout:
    """The same with weights that can be put on a bar: steps of half a kilogram, 1,000 at most."""
    sets = tuple(
        logged
        if logged.weight_kg is None
        else replace(logged, weight_kg=min(1_000, round(logged.weight_kg * factor * 2) / 2))
        for logged in workout.sets
    )
    return replace(workout, sets=sets)
