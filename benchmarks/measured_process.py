"""Run a program as a child and measure what it costs: processor time, wall time, memory (Linux)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Cost:
    """What one run took.

    Attributes:
        cpu: Processor seconds, user and system, of the process and of all that it waited for.
        wall: Seconds from start to end.
        memory: Largest sum over the process tree of anonymous and shared anonymous memory, bytes.
            Mapped files are not in it: the system takes those pages back when it needs them.
        load: Load average of the machine when it started.
    """

    cpu: float
    wall: float
    memory: int
    load: float


class Failed(Exception):
    """The program ended with an error; the text is what it printed last."""


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        environment: Variables to add to ours.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile() as printed:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        watch = _Watch(child.pid)
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        watch.ended.set()
        watch.join()
        if child.returncode:
            printed.seek(0)
            last = printed.read().decode(errors="replace")[-2000:]
            raise Failed(f"{' '.join(command)}\nended with {child.returncode}:\n{last}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, watch.peak, load)


class _Watch(threading.Thread):
    """Looks at the memory of a process tree until told that it ended."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.ended = root, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(INTERVAL):
            self.peak = max(self.peak, sum(map(_anonymous, _tree(self.root))))


def _tree(process: int) -> Iterator[int]:
    yield process
    try:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))
    except OSError:
        return


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    held = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return 1024 * sum(map(int, held))
