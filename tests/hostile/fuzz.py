"""Attack a reader with mutated files: ``python tests/hostile/fuzz.py header --minutes 10``.

A finding is an error that was not meant, a wrong answer, more than 3 seconds of work, or more than
500 MB of memory. The inputs that caused one are kept in tests/hostile/corpus/, which the tests
replay. Inputs that get an answer of a new kind become seeds for further mutations.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "checkpoints")]

from fuzz_targets import TARGETS, Target, attack  # noqa: E402

MOST_MEMORY = 500 << 20
MOST_SECONDS = 3.0
MOST_SEEDS = 2000
HEAD = struct.Struct("<QQdQQ")  # runs, refused, CPU seconds at the start of this one, bytes, kinds
SAID = 400
CORPUS = HERE / "corpus"


class Board:
    """Memory that a child shares with its parent: how far it is, and the input it is at."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1 << 20)

    def write(self, runs: int, refused: int, kinds: int, data: bytes) -> None:
        """Say what is about to be tried."""
        start = HEAD.size
        self.memory[start : start + len(data)] = data
        self.memory[:start] = HEAD.pack(runs, refused, time.process_time(), len(data), kinds)

    def fail(self, why: str) -> None:
        """Say why the child ends."""
        self.memory[-SAID:] = why.encode()[:SAID].ljust(SAID, b"\0")

    def failure(self) -> str:
        """What ``fail`` was told; "" where it was not, and from now on."""
        why = self.memory[-SAID:].rstrip(b"\0").decode(errors="replace")
        self.memory[-SAID:] = bytes(SAID)
        return why

    def read(self) -> tuple[int, int, float, bytes, int]:
        """Runs, refusals, CPU seconds when the last one began, its input, kinds of answers."""
        runs, refused, began, size, kinds = HEAD.unpack(self.memory[: HEAD.size])
        return runs, refused, began, self.memory[HEAD.size : HEAD.size + size], kinds


def run(target: Target, board: Board, seed: int, until: float) -> None:
    """Try inputs until the time is over; leaves the last one on the board."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY,) * 2)
    rng = Random(seed)
    seeds = [*target.seeds]
    known: set[str] = set()
    before, refused_before = board.read()[:2]
    with tempfile.TemporaryDirectory(dir=_scratch()) as name:
        folder = Path(name)
        target.prepare(folder)
        good: list[bytes] = []
        runs = refused = 0
        while time.time() < until:
            data = _next(seeds, good, runs, target, rng)
            runs += 1
            board.write(before + runs, refused_before + refused, len(known), data)
            said = attack(target, folder, data)
            refused += bool(said)
            if not said and len(good) < MOST_SEEDS:
                good.append(data)
            kind = re.sub(r"[\d'\"\[\]{}.\\]+|(?<=  ).*?: ", "", said.replace(name, ""))[:200]
            if kind not in known and len(seeds) < MOST_SEEDS:
                known.add(kind)
                seeds.append(data)


def _next(seeds: list[bytes], good: list[bytes], runs: int, target: Target, rng: Random) -> bytes:
    """The seeds as they are, then changes: half of them to inputs that were accepted."""
    if runs < len(target.seeds):
        return seeds[runs]
    origin = rng.choice(good if good and rng.random() < 0.5 else seeds)
    return target.change(origin, seeds, rng)


def _scratch() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _child(target: Target, board: Board, seed: int, until: float) -> int:
    """Fork a process that runs; what goes wrong it writes on the board."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run(target, board, seed, until)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        board.fail(f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {error}")
        os._exit(1)
    os._exit(0)


def _watch(pid: int, board: Board) -> str:
    """Wait for the child; why it failed, or "" where it did not."""
    ticks = os.sysconf("SC_CLK_TCK")
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else board.failure() or f"ended with {code}"
        time.sleep(0.2)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent = (int(fields[11]) + int(fields[12])) / ticks
        if board.read()[0] and spent - board.read()[2] > MOST_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"took more than {MOST_SECONDS:g} s"


def fuzz(name: str, minutes: float, seed: int) -> int:
    """Attack one reader; gives the number of findings."""
    target, board, until = TARGETS[name], Board(), time.time() + 60 * minutes
    findings: Counter[str] = Counter()
    while time.time() < until and sum(findings.values()) < 50:
        seed += 1
        why = _watch(_child(target, board, seed, until), board)
        kind = why[:120]
        if why and kind not in findings:
            data = board.read()[3]
            path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{path}: {why}", flush=True)
        if why:
            findings[kind] += 1
    runs, refused, _, _, kinds = board.read()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(
        f"{name}: {runs} inputs in {minutes:g} minutes, {refused} refused, {runs - refused} "
        f"accepted, {kinds} kinds of answers, {sum(findings.values())} findings of {len(findings)} kinds, peak {peak} MB"
    )
    return sum(findings.values())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(bool(fuzz(given.target, given.minutes, given.seed)))


if __name__ == "__main__":
    main()
