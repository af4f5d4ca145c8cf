"""The command line: `python -m server [serve|worker|token|replay|demo|doctor|export|erase]`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from crdt.errors import Unavailable
from crdt.ids import UserId
from server import VERSION, logs
from server.app import PARTS, create_app
from server.auth import ROLES, Authenticator
from server.command_help import teach
from server.http_rules import make_runner
from server.settings import Settings, SettingsError
from server.signals import end_in_time, until_stopped
from server.storage.port import StorageError

log = logging.getLogger("server")

EXIT_UNUSABLE = 2
"""The exit code for a configuration or a store that the server cannot run with."""

EXIT_INTERRUPTED = 130
"""The exit code of a replay that was stopped by Ctrl-C, as shells have it."""

SHUTDOWN_TIMEOUT_S = 5.0
FIRST_TOKENS_TTL_S = 7 * 86_400


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    command = arguments.command or "serve"
    if command == "doctor":
        from server import doctor  # what it looks at, a server need not have

        return doctor.main(arguments.token)
    try:
        settings = Settings.from_env()
        logs.configure(settings, is_serving=command in ("serve", "worker"))
        if command == "token":
            return _token(settings, arguments)
        if command == "replay":
            return _replay(settings, arguments)
        if command == "demo":
            return _demo(settings, arguments)
        if command == "worker":
            return _worker(settings)
        if command == "export":
            return _export(settings, arguments)
        if command == "erase":
            return _erase(settings, arguments)
        return uvloop.run(serve(settings))
    except (SettingsError, StorageError, Unavailable) as exc:
        print(f"repsync: {exc}", file=sys.stderr)
        return EXIT_UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="RepSync, a real-time collaboration server for fitness apps. Configured by "
        "environment variables, see docs/protocol.md, section 7.",
    )
    parser.add_argument("--version", action="version", version=f"RepSync {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve clients (what happens without a command)")

    commands.add_parser(
        "worker",
        help="move the shared log to MongoDB, and compact it",
        description="Does for several servers what each can do beside serving: moves what they "
        "have appended from Redis to MongoDB, makes snapshots, and trims. Any number may run; a "
        "server does without one unless EMBEDDED_WORKER=false.",
    )

    token = commands.add_parser(
        "token", help="print a token", description="Sign a token with the configured secret."
    )
    token.add_argument("--user", required=True, metavar="ID", help="who it speaks for")
    token.add_argument("--name", help="the name that others see (default: the id)")
    token.add_argument("--role", choices=ROLES, default="user")
    token.add_argument("--ttl", type=_ttl, default=86_400, metavar="S", help="seconds (a day)")

    replay = commands.add_parser(
        "replay",
        help="play a training export through real sockets",
        description="Play a Strong or Hevy export (CSV) as live sessions of several devices, and "
        "check that nothing is lost, doubled or unequal. Starts a server of its own, with its data "
        "in a temporary folder, unless --url names a running one.",
    )
    replay.add_argument("file", type=Path, metavar="FILE.csv")
    replay.add_argument(
        "--url",
        action="append",
        default=[],
        help="a running server, which must share this one's secret; several for several instances",
    )
    replay.add_argument(
        "--user",
        metavar="ID",
        help="whose training it is (default: lifter, and with --url somebody new)",
    )
    replay.add_argument("--limit", type=_count, metavar="N", help="the first N workouts only")
    replay.add_argument("--seed", type=int, default=1, help="repeats the same accidents")
    _add_personal(commands)
    replay.add_argument(
        "--pace",
        type=_pace,
        metavar="N",
        help="sets a second, to be watched on the page at / (default: as fast as it can)",
    )

    demo = commands.add_parser(
        "demo",
        help="serve, with people who train, for the page at / to move",
        description="Starts a server with its data in a temporary folder, and people who train "
        "there. Prints its address and a token for the page at /. Ends with Ctrl-C.",
    )
    demo.add_argument(
        "--pace", type=_pace, default=0.5, metavar="N", help="sets a second of each (0.5)"
    )

    doctor = commands.add_parser(
        "doctor",
        help="check configuration and connections, and say what to do",
        description="Look at what the environment configures: settings, data folder, port, keys, "
        "Redis, MongoDB. Prints a line for each check: ok, warning, or FAIL with what to do. "
        "Changes nothing, and prints no secret.",
    )
    doctor.add_argument(
        "--token", metavar="TOKEN", help="say why this one is refused; - reads it from stdin"
    )
    teach(parser, commands.choices)
    return parser


def _add_personal(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write all data of one person as JSON",
        description="Write all that is kept of one person: their documents, their part in "
        "others', and what is kept beside. Works while servers run. docs/operations.md describes "
        "the format.",
    )
    export.add_argument("--user", required=True, metavar="ID", type=_user_id, help="whose data")
    export.add_argument("--out", type=Path, metavar="FILE", help="where to (default: stdout)")

    erase = commands.add_parser(
        "erase",
        help="erase one person, everywhere and for good",
        description="Delete the documents of one person, take them out of others' documents and "
        "out of all that is kept beside, and see that nothing of it comes back. Works while a "
        "server runs; what was begun is carried out to its end by whoever serves the data. There "
        "is no way back: write an export first. The host application must stop issuing tokens for "
        "them.",
    )
    erase.add_argument("--user", required=True, metavar="ID", type=_user_id, help="who is erased")
    erase.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    erase.add_argument("--yes", action="store_true", help="needed unless it is a dry run")
    erase.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="wait for a server (600 s)"
    )


def _user_id(text: str) -> str:
    if not 0 < len(text) <= 200:
        raise argparse.ArgumentTypeError("must be a user id of 1 to 200 characters")
    return text


def _ttl(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 10 * 365 * 86_400:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return count


def _pace(text: str) -> float:
    pace = float(text)
    if not 0.001 <= pace <= 1_000:
        raise argparse.ArgumentTypeError("must be a number of sets a second, 0.001 to 1000")
    return pace


def _token(settings: Settings, arguments: argparse.Namespace) -> int:
    auth = Authenticator.from_settings(settings)
    print(auth.sign(arguments.user, name=arguments.name, role=arguments.role, ttl_s=arguments.ttl))
    return 0


def _replay(settings: Settings, arguments: argparse.Namespace) -> int:
    from server.replay.play import replay  # rich and the client are not needed to serve

    playing = replay(
        settings,
        arguments.file,
        urls=arguments.url,
        user_id=arguments.user,
        limit=arguments.limit,
        seed=arguments.seed,
        pace=arguments.pace,
    )
    try:
        return uvloop.run(playing)
    except KeyboardInterrupt:
        print("repsync: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _demo(settings: Settings, arguments: argparse.Namespace) -> int:
    from server.replay.demo import demo  # likewise

    return uvloop.run(demo(settings, pace=arguments.pace))


def _worker(settings: Settings) -> int:
    if settings.redis_url is None or settings.mongodb_uri is None:
        raise SettingsError(
            "a worker needs REDIS_URL and MONGODB_URI; without them a server does it all by itself"
        )
    from server.worker import work

    return uvloop.run(work(settings))


def _export(settings: Settings, arguments: argparse.Namespace) -> int:
    from server.personal import export

    if arguments.out is None:
        return asyncio.run(export(settings, UserId(arguments.user), sys.stdout))
    try:
        # Nobody else is to read it, and a half of it is not to be taken for the whole.
        part = arguments.out.with_name(arguments.out.name + ".part")
        with open(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
            code = asyncio.run(export(settings, UserId(arguments.user), out))
        part.replace(arguments.out)
    except OSError as exc:
        raise SettingsError(f"{arguments.out} cannot be written: {exc.strerror}") from exc
    return code


def _erase(settings: Settings, arguments: argparse.Namespace) -> int:
    from server.personal import erase

    if not arguments.yes and not arguments.dry_run:
        raise SettingsError(
            "erasing cannot be undone: say --yes, or --dry-run to see what would be removed"
        )
    return asyncio.run(
        erase(
            settings,
            UserId(arguments.user),
            is_dry_run=arguments.dry_run,
            timeout_s=arguments.timeout,
        )
    )


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then let what is under way become durable."""
    app = create_app(settings)
    parts = app[PARTS]
    logs.name_instance(parts.instance)
    runner = make_runner(app, settings, shutdown_timeout_s=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG)
        try:
            await site.start()
        except OSError as exc:
            raise SettingsError(
                f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc};"
                " set PORT to a free one"
            ) from exc
        _tune_interpreter()
        stop = until_stopped()
        port = runner.addresses[0][1]
        _greet(settings, parts.auth, port=port)
        told = {"version": VERSION, "host": settings.host, "port": port, "store": parts.store.kind}
        log.info("serving", extra={**told, "shared": settings.redis_url is not None})
        await stop.wait()
        end_in_time()
        stopped_s = time.monotonic()
        told = {"connections": parts.sockets.connection_count, "rooms": len(parts.hub)}
        log.info("draining", extra=told)
    finally:
        await runner.cleanup()
    log.info("ended", extra={"drained_in_s": round(time.monotonic() - stopped_s, 2)})
    return 0


SWITCH_INTERVAL_S = 0.0005
BACKLOG = 512
"""Clients that the kernel keeps for us while we are busy; beyond it they try again after a second,
then three, then seven."""


def _tune_interpreter() -> None:
    """Set what is set once for a process that serves."""
    # The log's writer gives the interpreter away at every statement. If a busy event loop could
    # keep it for the default of 5 ms each time, a commit of forty records would take 0.2 s.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is loaded now stays: the collector need not look at it again, nor look so often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _greet(settings: Settings, auth: Authenticator, port: int) -> None:
    """Tell a newcomer where the server is, and give them what they need to get in."""
    lines = [f"RepSync serves http://{settings.host}:{port}"]
    place = "MongoDB (MONGODB_URI)" if settings.mongodb_uri else settings.data_dir.resolve()
    if settings.redis_url:
        place = f"Redis (REDIS_URL) and {place}"
    lines.append(f"  data in      {place}")
    if settings.is_loopback and auth.can_sign and settings.jwt_secret is None:
        for user_id, name, role, use in (
            ("lifter", "Lifter", "user", "a lifter"),
            ("coach", "Coach", "trainer", "a coach"),
            ("operator", "Operator", "admin", "the dashboard"),
        ):
            token = auth.sign(user_id, name=name, role=role, ttl_s=FIRST_TOKENS_TTL_S)
            lines.append(f"  token for {use:<14} {token}")
        lines.append("  another one  python -m server token --user ID [--role R] [--ttl S]")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
