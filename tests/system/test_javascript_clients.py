"""The stock JavaScript clients, under Node, against a real server.

Each test plays one scenario of `tests/js/`: the script connects socket.io-client and y-socket.io's
provider as a web page does, and asserts what they see. What a script asks its test for (a line
`> wish` on its output) is done here, and answered with a line on its input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers.javascript import JS, TIMEOUT_S, demand_javascript
from tests.helpers.servers import ROOT, RunningServer, ServerProcess, clean_env, running_server

pytestmark = pytest.mark.js

Wishes = Mapping[str, Callable[[], Awaitable[object]]]


@pytest.fixture(autouse=True)
def _javascript() -> None:
    demand_javascript()


@pytest.fixture(autouse=True)
def _nothing_went_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception in the server that no client notices still fails the test."""
    yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]


async def play(
    script: str,
    scenario: str,
    url: str,
    tokens: Mapping[str, str],
    *,
    wishes: Wishes | None = None,
    **env: str,
) -> None:
    """Run one scenario, and fail with its output if it does."""
    node = await asyncio.create_subprocess_exec(
        "node",
        "run.mjs",
        script,
        scenario,
        cwd=JS,
        env={**os.environ, "REPSYNC_URL": url, "REPSYNC_TOKENS": json.dumps(tokens), **env},
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
        limit=2**24,  # an assertion may print a large text on one line
    )
    output: list[str] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _listen(node, output, wishes or {})
            code = await node.wait()
    except TimeoutError:
        pytest.fail(f"{scenario} does not end:\n{''.join(output)}", pytrace=False)
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    if code != 0:
        pytest.fail(f"{script}: {scenario}\n{''.join(output)}", pytrace=False)


async def _listen(node: asyncio.subprocess.Process, output: list[str], wishes: Wishes) -> None:
    assert node.stdin is not None
    assert node.stdout is not None
    async for raw in node.stdout:
        line = raw.decode(errors="replace")
        if line.startswith("> "):
            await wishes[line[2:].strip()]()
            node.stdin.write(b"done\n")
            await node.stdin.drain()
        else:
            output.append(line)


def tokens_of(server: RunningServer, brief_s: float = 60) -> dict[str, str]:
    """Tokens by user, and two of Ana's: one that has expired, one that will in `brief_s`."""
    return {
        "ana": server.token("ana", name="Ana"),
        "ben": server.token("ben", name="Ben"),
        "cleo": server.token("cleo", name="Cleo"),
        "stranger": server.token("stranger", name="Stranger"),
        "expired": server.token("ana", ttl_s=-60),
        "brief": server.token("ana", name="Ana", ttl_s=brief_s),
    }


# -- workouts through JSON -----------------------------------------------------------------


@pytest.mark.parametrize(
    "transports",
    [
        pytest.param(None, id="polling-then-websocket"),
        pytest.param("websocket", id="websocket-only"),
        pytest.param("polling", id="polling-only"),
    ],
)
async def test_a_whole_workout_works(server: RunningServer, transports: str | None) -> None:
    chosen = {"REPSYNC_TRANSPORTS": transports} if transports else {}
    await play("workouts.mjs", "aWholeWorkout", server.url, tokens_of(server), **chosen)


async def test_one_workout_at_a_time(server: RunningServer) -> None:
    await play("workouts.mjs", "oneWorkoutAtATime", server.url, tokens_of(server))


async def test_an_invitation_reaches_every_device(server: RunningServer) -> None:
    await play("workouts.mjs", "anInvitationReachesEveryDevice", server.url, tokens_of(server))


async def test_every_event_is_answered_once(server: RunningServer) -> None:
    await play("workouts.mjs", "everyEventIsAnsweredOnce", server.url, tokens_of(server))


async def test_a_retrying_client_is_served_in_order(server: RunningServer) -> None:
    await play("workouts.mjs", "aRetryingClientIsServedInOrder", server.url, tokens_of(server))


async def test_nothing_is_lost_while_a_connection_upgrades(server: RunningServer) -> None:
    await play(
        "workouts.mjs", "nothingIsLostWhileAConnectionUpgrades", server.url, tokens_of(server)
    )


async def test_an_operation_is_carried_out_once(server: RunningServer) -> None:
    await play("workouts.mjs", "anOperationIsCarriedOutOnce", server.url, tokens_of(server))


# -- doors and tokens ----------------------------------------------------------------------


async def test_who_has_no_good_token_is_refused(server: RunningServer) -> None:
    await play("doors.mjs", "whoHasNoGoodTokenIsRefused", server.url, tokens_of(server))


async def test_a_stranger_is_refused(server: RunningServer) -> None:
    await play("doors.mjs", "aStrangerIsRefused", server.url, tokens_of(server))


async def test_a_place_that_there_is_not_is_refused(server: RunningServer) -> None:
    await play("doors.mjs", "aPlaceThatThereIsNotIsRefused", server.url, tokens_of(server))


async def test_a_token_that_ends_ends_its_connections(server: RunningServer) -> None:
    await play(
        "doors.mjs", "aTokenThatEndsEndsItsConnections", server.url, tokens_of(server, brief_s=2.5)
    )


async def test_a_new_token_keeps_the_connections(server: RunningServer) -> None:
    await play(
        "doors.mjs", "aNewTokenKeepsTheConnections", server.url, tokens_of(server, brief_s=2.5)
    )


async def test_a_documents_own_connection_can_be_refreshed(server: RunningServer) -> None:
    await play(
        "doors.mjs",
        "aDocumentsOwnConnectionCanBeRefreshed",
        server.url,
        tokens_of(server, brief_s=2.5),
    )


# -- templates through Yjs -----------------------------------------------------------------


async def test_two_trainers_type_into_one_note(server: RunningServer) -> None:
    await play("templates.mjs", "twoTrainersTypeIntoOneNote", server.url, tokens_of(server))


async def test_a_provider_that_says_it_is_synced_has_the_document(server: RunningServer) -> None:
    await play(
        "templates.mjs", "aProviderThatSaysItIsSyncedHasTheDocument", server.url, tokens_of(server)
    )


async def test_edits_made_offline_on_both_sides_converge(server: RunningServer) -> None:
    await play(
        "templates.mjs", "editsMadeOfflineOnBothSidesConverge", server.url, tokens_of(server)
    )


async def test_a_lost_connection_comes_back_by_itself(server: RunningServer) -> None:
    await play("templates.mjs", "aLostConnectionComesBackByItself", server.url, tokens_of(server))


async def test_documents_can_be_edited_over_long_polling(server: RunningServer) -> None:
    await play(
        "templates.mjs", "documentsCanBeEditedOverLongPolling", server.url, tokens_of(server)
    )


async def test_a_burst_of_edits_over_long_polling_arrives(server: RunningServer) -> None:
    await play(
        "templates.mjs", "aBurstOfEditsOverLongPollingArrives", server.url, tokens_of(server)
    )


async def test_a_large_edit_over_long_polling_arrives(server: RunningServer) -> None:
    await play("templates.mjs", "aLargeEditOverLongPollingArrives", server.url, tokens_of(server))


async def test_one_connection_carries_events_and_document(server: RunningServer) -> None:
    await play(
        "templates.mjs", "oneConnectionCarriesEventsAndDocument", server.url, tokens_of(server)
    )


async def test_everybody_sees_who_is_here(server: RunningServer) -> None:
    await play("templates.mjs", "everybodySeesWhoIsHere", server.url, tokens_of(server))


async def test_who_leaves_is_gone_and_who_comes_back_sees_the_others(server: RunningServer) -> None:
    scenario = "whoLeavesIsGoneAndWhoComesBackSeesTheOthers"
    await play("templates.mjs", scenario, server.url, tokens_of(server))


async def test_a_viewer_sees_everything_and_changes_nothing(server: RunningServer) -> None:
    await play(
        "templates.mjs", "aViewerSeesEverythingAndChangesNothing", server.url, tokens_of(server)
    )


async def test_who_is_put_out_leaves_at_once(server: RunningServer) -> None:
    await play("templates.mjs", "whoIsPutOutLeavesAtOnce", server.url, tokens_of(server))


# -- single updates ------------------------------------------------------------------------


async def test_an_update_is_acked_when_it_is_durable(server: RunningServer) -> None:
    await play("updates.mjs", "anUpdateIsAckedWhenItIsDurable", server.url, tokens_of(server))


async def test_a_flood_of_edits_arrives_slowly_and_whole(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_events_per_s=100, max_events_burst=30) as server:
        await play(
            "updates.mjs", "aFloodOfEditsArrivesSlowlyAndWhole", server.url, tokens_of(server)
        )
        assert server.parts.sockets.stats.limited.keys() == {"held"}


async def test_what_is_no_update_is_refused(server: RunningServer) -> None:
    await play("updates.mjs", "whatIsNoUpdateIsRefused", server.url, tokens_of(server))


async def test_an_update_without_its_predecessor_asks_for_a_sync(server: RunningServer) -> None:
    await play(
        "updates.mjs", "anUpdateWithoutItsPredecessorAsksForASync", server.url, tokens_of(server)
    )


async def test_an_edit_that_builds_on_another_tabs_unsent_edit_arrives(
    server: RunningServer,
) -> None:
    await play(
        "updates.mjs",
        "anEditThatBuildsOnAnotherTabsUnsentEditArrives",
        server.url,
        tokens_of(server),
    )


async def test_a_replica_that_lacks_a_part_itself_arrives_once_it_has_it(
    server: RunningServer,
) -> None:
    await play(
        "updates.mjs",
        "aReplicaThatLacksAPartItselfArrivesOnceItHasIt",
        server.url,
        tokens_of(server),
    )


async def test_an_update_that_is_too_large_is_refused_and_the_connection_lives_on(
    server: RunningServer,
) -> None:
    await play(
        "updates.mjs",
        "anUpdateThatIsTooLargeIsRefusedAndTheConnectionLivesOn",
        server.url,
        tokens_of(server),
    )


async def test_what_only_intents_may_change_is_refused(server: RunningServer) -> None:
    await play("updates.mjs", "whatOnlyIntentsMayChangeIsRefused", server.url, tokens_of(server))


async def test_a_set_belongs_to_the_one_who_did_it(server: RunningServer) -> None:
    await play("updates.mjs", "aSetBelongsToTheOneWhoDidIt", server.url, tokens_of(server))


async def test_a_client_id_belongs_to_the_one_who_used_it_first(server: RunningServer) -> None:
    scenario = "aClientIdBelongsToTheOneWhoUsedItFirst"
    await play("updates.mjs", scenario, server.url, tokens_of(server))


async def test_nobody_is_shown_as_somebody_else(server: RunningServer) -> None:
    await play("updates.mjs", "nobodyIsShownAsSomebodyElse", server.url, tokens_of(server))


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("anExerciseThatIsNoMapDoesNotStopTheOthers", id="an-exercise-that-is-no-map"),
        pytest.param("aSetOfAbsurdWeightDoesNotStopTheOthers", id="a-set-of-absurd-weight"),
        pytest.param("aDeeplyNestedValueDoesNotStopTheOthers", id="a-deeply-nested-value"),
    ],
)
async def test_what_one_client_writes_does_not_stop_the_others(
    server: RunningServer, scenario: str
) -> None:
    await play("updates.mjs", scenario, server.url, tokens_of(server))


# -- a workout on a watch and on a laptop --------------------------------------------------


async def test_the_watch_and_the_laptop_show_the_same_workout(server: RunningServer) -> None:
    await play(
        "workout-documents.mjs",
        "theWatchAndTheLaptopShowTheSameWorkout",
        server.url,
        tokens_of(server),
    )


async def test_a_set_written_into_the_document_reaches_the_watch(server: RunningServer) -> None:
    await play(
        "workout-documents.mjs",
        "aSetWrittenIntoTheDocumentReachesTheWatch",
        server.url,
        tokens_of(server),
    )


async def test_sets_logged_offline_on_both_are_all_there(server: RunningServer) -> None:
    await play(
        "workout-documents.mjs", "setsLoggedOfflineOnBothAreAllThere", server.url, tokens_of(server)
    )


@pytest.mark.system
async def test_a_killed_server_loses_nothing_that_was_acked(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data")
    await process.start()
    try:
        await play(
            "workout-documents.mjs",
            "aKilledServerLosesNothingThatWasAcked",
            process.url,
            {"ana": await _printed_token(process.folder, "ana", "Ana")},
            wishes={"kill": process.kill, "start": process.start},
        )
    finally:
        await process.stop()


async def _printed_token(folder: Path, user_id: str, name: str) -> str:
    """A token from the command line, signed with the secret of this data folder."""
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server", "token", "--user", user_id, "--name", name),
        cwd=ROOT,
        env={**clean_env(), "DATA_DIR": str(folder)},
        stdout=PIPE,
    )
    printed, _ = await command.communicate()
    assert command.returncode == 0
    return printed.decode().strip()
