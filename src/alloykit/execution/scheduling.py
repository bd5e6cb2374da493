"""Which worker does what next: blocks in order, and the surveys that they wait for."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alloykit.execution.blocks import Block, Part
from alloykit.execution.plan import Step


@dataclass(frozen=True)
class Task:
    """A block to compute, with its parts; or, without a block, a step to prepare."""

    block: Block | None
    parts: tuple[Part, ...] = ()
    step: Step | None = None


class Schedule:
    """Hands out tasks to threads. A step is prepared once, kept, and let go after its last block.

    Threads prepare what the next block needs, each another step of it; where all of it is under
    way, what comes after it, so that few steps are prepared ahead.

    Args:
        blocks: The blocks to do with their parts, in order.
        prepared: The steps that must be prepared before their blocks, in the order of those.
        uses: Number of parts of each of these steps.
        ahead: How many steps may be prepared and unused at a time.
        given: What other steps were prepared with elsewhere.
    """

    def __init__(
        self,
        blocks: Iterable[tuple[Block, tuple[Part, ...]]],
        prepared: Iterable[Step],
        uses: Counter[str],
        ahead: int,
        given: Mapping[str, Any],
    ) -> None:
        self._blocks: Iterator[tuple[Block, tuple[Part, ...]]] = iter(blocks)
        self._steps = {step.name: step for step in prepared}
        self._later = deque(self._steps)
        self._started: set[str] = set()
        self._uses = uses
        self._ahead = ahead
        self._given = given
        self._states: dict[str, Any] = {}
        self._preparing = 0
        self._head: tuple[Block, tuple[Part, ...]] | None = None
        self._missing: set[str] = set()
        self._soon: deque[str] = deque()
        # A plain lock: entering one with "with" cannot be interrupted halfway.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entered = self._left = 0
        self.error: BaseException | None = None

    def enter(self) -> bool:
        """Take part as a thread; False where the work has failed before this thread began."""
        with self._lock:
            self._entered += self.error is None
            return self.error is None

    def leave(self) -> None:
        """Take part no longer."""
        with self._lock:
            self._left += 1

    def next(self) -> Task | None:
        """The next task, waiting for one; None where there is nothing left or a thread failed."""
        with self._lock:
            while self.error is None:
                if self._head is None and not self._take():
                    return None
                if self._head is not None and not self._missing:
                    block, parts = self._head
                    self._head = None
                    return Task(block, parts)
                step = self._to_prepare()
                if step is not None:
                    self._started.add(step.name)
                    self._preparing += 1
                    return Task(None, step=step)
                self._changed.wait()
            return None

    def _take(self) -> bool:
        """Look at the next block, and at what it waits for; False where there is none."""
        self._head = next(self._blocks, None)
        if self._head is None:
            return False
        names = dict.fromkeys(part.step.name for part in self._head[1])
        self._soon = deque(name for name in names if name in self._steps)
        self._missing = {name for name in self._soon if name not in self._states}
        return True

    def _to_prepare(self) -> Step | None:
        """What the next block waits for; where all of it is under way, what comes after it."""
        name = self._unstarted(self._soon)
        if name is None and len(self._states) + self._preparing < self._ahead:
            name = self._unstarted(self._later)
        return None if name is None else self._steps[name]

    def _unstarted(self, names: deque[str]) -> str | None:
        while names:
            name = names.popleft()
            if name not in self._started:
                return name
        return None

    def keep(self, step: Step, state: Any) -> None:
        """What a prepared step's blocks will be given."""
        with self._lock:
            self._states[step.name] = state
            self._missing.discard(step.name)
            self._preparing -= 1
            self._changed.notify_all()

    def state(self, part: Part) -> Any:
        """What the step of this part was prepared with."""
        name = part.step.name
        return self._states[name] if name in self._states else self._given.get(name)

    def finish(self, parts: Iterable[Part]) -> None:
        """Let go of what no part needs any more."""
        with self._lock:
            for part in parts:
                name = part.step.name
                if name in self._steps:
                    self._uses[name] -= 1
                    if not self._uses[name]:
                        del self._states[name]
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the work: the first error counts."""
        with self._lock:
            self.error = self.error or error
            self._changed.notify_all()

    def ended(self, threads: int) -> bool:
        """Whether all of so many threads have left; after an error, all that had entered."""
        return self._left == (threads if self.error is None else self._entered)
