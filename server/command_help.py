"""What `--help` teaches beside the arguments: examples, settings, exit codes.

For each command of the parser in `server/__main__.py`, and for the whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

TOP = """\
examples:
  python -m server                                 serve on http://127.0.0.1:8000
  python -m server token --user ana                a token to connect with
  python -m server demo                            people who train, to be watched
  python -m server doctor                          is everything there?
  python -m server COMMAND --help                  more about a command

settings are environment variables; all of them: docs/protocol.md, section 7
  HOST PORT         where to listen (127.0.0.1, 8000); another host needs a key
  DATA_DIR          SQLite, the spool, the generated secret (./data)
  JWT_SECRET        tokens are HS256 with this one, of 32 bytes or more;
                    or JWT_PUBLIC_KEY, or JWT_JWKS_URL
  MONGODB_URI       the log in MongoDB instead of SQLite
  REDIS_URL         several instances, with MONGODB_URI
  LOG_LEVEL         DEBUG, INFO, WARNING or ERROR

exit codes:
  0  done           1  a check failed (doctor, replay), or is not over (erase)
  2  the arguments, the settings or the store cannot be used; one line says why
"""

SERVE = """\
examples:
  python -m server serve
  PORT=9000 DATA_DIR=/srv/repsync python -m server serve
  HOST=0.0.0.0 JWT_SECRET=$(cat secret) python -m server serve
  REDIS_URL=redis://redis MONGODB_URI=mongodb://mongo/repsync python -m server serve

without any setting it binds to 127.0.0.1, keeps SQLite and a generated secret
in ./data, and prints tokens to begin with. SIGTERM and SIGINT end it: what is
under way becomes durable first, and clients are told when to come back.

settings: HOST PORT DATA_DIR JWT_SECRET CORS_ORIGINS MONGODB_URI REDIS_URL
  LOG_LEVEL LOG_FORMAT MAX_CONNECTIONS
exit codes:
  0  ended by a signal
  2  the settings or the store cannot be used, or the port is taken
"""

WORKER = """\
examples:
  REDIS_URL=redis://redis MONGODB_URI=mongodb://mongo/repsync python -m server worker

settings: REDIS_URL MONGODB_URI REDIS_PREFIX BUS_SECRET, as the servers have
  them; COMPACT_AFTER; on the servers EMBEDDED_WORKER=false leaves it all to it
exit codes:
  0  ended by a signal
  2  an address is missing, or MongoDB cannot be used
"""

TOKEN = """\
examples:
  python -m server token --user ana
  python -m server token --user cleo --name Cleo --role trainer --ttl 3600
  python -m server token --user olga --role admin   for system:health

it is signed with JWT_SECRET, else with the generated secret in DATA_DIR: run it
with the settings of the server that is to take it.

settings: JWT_SECRET DATA_DIR JWT_ISSUER JWT_AUDIENCE
exit codes:
  0  printed
  2  there is no secret to sign with: JWT_PUBLIC_KEY and JWT_JWKS_URL only check
"""

REPLAY = """\
examples:
  python -m server replay strong.csv
  python -m server replay hevy.csv --limit 20 --seed 7
  python -m server replay strong.csv --url http://127.0.0.1:8000 --user ana
  python -m server replay hevy.csv --url http://127.0.0.1:8000 --pace 2

settings: JWT_SECRET DATA_DIR, as the server of --url has them
exit codes:
  0  all is as it should be      1    something was lost, doubled or unequal
  2  the file cannot be used     130  stopped by Ctrl-C
"""

DEMO = """\
examples:
  python -m server demo
  PORT=9000 python -m server demo --pace 2

settings: HOST PORT LOG_LEVEL
exit codes:
  0  ended by Ctrl-C
  2  the settings cannot be used, or the port is taken
"""

EXPORT = """\
examples:
  python -m server export --user ana
  python -m server export --user ana --out ana.json

settings: DATA_DIR, or MONGODB_URI and REDIS_URL, as the server has them; with
  REDIS_URL, REDIS_PREFIX and BUS_SECRET too
exit codes:
  0  written
  2  the settings or the store cannot be used, or the file cannot be written
"""

ERASE = """\
examples:
  python -m server erase --user ana --dry-run
  python -m server erase --user ana --yes

settings: DATA_DIR, or MONGODB_URI and REDIS_URL, as the server has them; with
  REDIS_URL, REDIS_PREFIX and BUS_SECRET too
exit codes:
  0  erased, or told what would be
  1  noted, and not done yet: whoever serves the data goes on with it
  2  the settings or the store cannot be used, or --yes is missing
"""

DOCTOR = """\
examples:
  python -m server doctor
  python -m server doctor --token eyJhbGciOi...    why is this one refused?
  python -m server doctor --token - < token.txt    the same, not for `ps` to see
  REDIS_URL=redis://redis MONGODB_URI=mongodb://mongo python -m server doctor

run it with the settings, as the user and on the machine of the server. Each
check takes 3 s at most.

settings: all of serve, above all DATA_DIR PORT JWT_SECRET REDIS_URL MONGODB_URI
exit codes:
  0  nothing failed; there may be warnings
  1  something failed, and the line says what to do
  2  the settings cannot be read
"""

OF_COMMANDS = {
    "serve": SERVE,
    "worker": WORKER,
    "token": TOKEN,
    "replay": REPLAY,
    "demo": DEMO,
    "doctor": DOCTOR,
    "export": EXPORT,
    "erase": ERASE,
}


def teach(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add all this to the help of a parser and of its commands."""
    for one, text in ((parser, TOP), *((commands[name], t) for name, t in OF_COMMANDS.items())):
        one.epilog = text
        one.formatter_class = _Formatter


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; a description is filled like any other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text in (TOP, *OF_COMMANDS.values()):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)
