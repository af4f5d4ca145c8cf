"""One target under libFuzzer, guided by the coverage of our Python code: `engine TARGET RUNS SEED`.

What a run raises is kept and counted, and the fuzzing goes on; what ends the process leaves its
input in a file. At the end some of the inputs are played over and over: libFuzzer grows with all
that it finds, the server may not (see `tests/fuzz/memory.py`).
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(
    include=["crdt", "handlers", "server", "socketio.packet", "engineio.packet"]
):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.findings import FINDINGS, LAST, REGRESSIONS, keep
from tests.fuzz.memory import MAX_KEPT_BYTES, kept_bytes, memory_bytes
from tests.fuzz.target import ACCEPTED, Target

MAX_INPUT_BYTES = 64 * 1024
WARM_UP = 0.2
"""The part of the runs after which memory should have found its level."""
MAX_GROWTH_MB = 48
SAMPLE = 500
"""How many inputs are played again at the end, to see what is kept of them."""
SHOWN = 3
"""How many inputs are kept of one cause."""


class Session:
    """The runs of one target, and what is told of them."""

    def __init__(self, target: Target, runs: int) -> None:
        self.target = target
        self.runs = runs
        self.done = 0
        self.outcomes: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.warm_mb = 0.0
        self._sample: list[bytes] = []
        self._random = Random(runs)
        self._started = time.monotonic()
        self._last = self._open_last()

    def _open_last(self) -> mmap.mmap:
        path = FINDINGS / self.target.name / LAST
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb+") as file:
            file.truncate(16 + MAX_INPUT_BYTES)
            return mmap.mmap(file.fileno(), 0)

    def run(self, data: bytes) -> None:
        """One input."""
        self.done += 1
        failure = self._play(data, self.outcomes)
        if failure is not None:
            self._note(data, failure)
        self._remember(data)
        if self.done == max(1, int(self.runs * WARM_UP)):
            self.warm_mb = memory_mb()

    def _play(self, data: bytes, outcomes: Counter[str]) -> BaseException | None:
        """Returns: what it raised, if anything."""
        # Should this be the last one of the process, the memory of the file still has it.
        head = self.done.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self._last[: 16 + len(data)] = head + data
        try:
            outcomes += self.target.feed(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a panic of native code is no Exception
            return exc
        return None

    def _remember(self, data: bytes) -> None:
        """Keep a sample in which every input is as likely to be as any other."""
        if len(self._sample) < SAMPLE:
            self._sample.append(data)
        elif (at := self._random.randrange(self.done)) < SAMPLE:
            self._sample[at] = data

    def _note(self, data: bytes, exc: BaseException) -> None:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        cause = f"{type(exc).__name__} at {Path(where.filename).name}:{where.lineno}"
        self.causes[cause] += 1
        if self.causes[cause] <= SHOWN:
            print(f"{self.target.name}: {cause}: {exc!s:.300}")
            print(f"  the input is {keep(self.target.name, data)}")
        if self.causes[cause] == 1:
            traceback.print_exception(exc)

    def tell(self) -> bool:
        """Print the summary. Returns: whether everything held."""
        mb = memory_mb()
        again = partial(self._play, outcomes=Counter())
        kept = kept_bytes(again, self._sample) if self._sample else 0.0
        crashes = sum(self.causes.values())
        accepted = self.outcomes.pop(ACCEPTED, 0)
        refused = ", ".join(f"{code} {count:,}" for code, count in sorted(self.outcomes.items()))
        seconds = time.monotonic() - self._started
        print(
            f"{self.target.name}: {self.done:,} runs in {seconds:.0f} s;"
            f" accepted {accepted:,}; refused: {refused or 'nothing'}; crashes {crashes:,};"
            f" memory {self.warm_mb:.0f} MB after warm-up, {mb:.0f} MB at the end,"
            f" {kept:.0f} bytes kept of an input that is played again",
            flush=True,
        )
        leaks = kept > MAX_KEPT_BYTES
        if leaks:
            print(f"{self.target.name}: of each input more than {MAX_KEPT_BYTES} bytes are kept")
        grows = mb - self.warm_mb > MAX_GROWTH_MB
        if grows:
            print(f"{self.target.name}: the memory grew by more than {MAX_GROWTH_MB} MB")
        return not (crashes or leaks or grows)


def memory_mb() -> float:
    return memory_bytes() / 2**20


def main(name: str, runs: int, seed: int) -> None:
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    # With it the first panic of native code reads all symbols that there are, and keeps 50 MB.
    os.environ["RUST_BACKTRACE"] = "0"
    corpus = FINDINGS / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with TARGETS[name]() as target, tempfile.TemporaryDirectory() as seeds:
        for number, data in enumerate(target.seeds()):
            (Path(seeds) / f"{number}").write_bytes(data)
        session = Session(target, runs)

        def mutate(data: bytes, max_size: int, mutation: int) -> bytes:
            random = Random(mutation)
            how = random.randrange(16)
            if how == 0:
                return bytes(atheris.Mutate(data, max_size))
            found = target.generate(random) if how == 1 else target.mutate(data, random)
            return found if len(found) <= max_size else data[:max_size]

        options = [
            *(f"-atheris_runs={runs}", f"-seed={seed}", f"-max_len={MAX_INPUT_BYTES}"),
            *("-len_control=0", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0"),
            f"-artifact_prefix={FINDINGS / name}/",
        ]
        folders = [str(corpus), seeds]
        if (REGRESSIONS / name).is_dir():
            folders.append(str(REGRESSIONS / name))
        atheris.Setup([sys.argv[0], *options, *folders], session.run, custom_mutator=mutate)
        code: object = 0
        try:
            atheris.Fuzz()
        except SystemExit as end:
            code = end.code
        finally:
            held = session.tell()
    # libFuzzer is leaving the process already, with its own code: no other exit would change that.
    sys.stdout.flush()
    os._exit(1 if code or not held else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
