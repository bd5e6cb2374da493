"""Which worker does what next: blocks in order, and the surveys that they wait for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
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

    While one thread prepares what the next block needs, others prepare what comes after it, so
    that no more than one step a thread is prepared ahead.

    Args:
        blocks: The blocks to do with their parts, in order.
        prepared: Names of the steps that must be prepared before their blocks.
        uses: Number of parts of each of these steps.
        ahead: How many steps may be prepared and unused at a time.
    """

    def __init__(
        self,
        blocks: Iterable[tuple[Block, tuple[Part, ...]]],
        prepared: Iterable[Step],
        uses: Counter[str],
        ahead: int,
    ) -> None:
        self._blocks: Iterator[tuple[Block, tuple[Part, ...]]] = iter(blocks)
        self._to_prepare = {step.name: step for step in prepared}
        self._needing = frozenset(self._to_prepare)
        self._uses = uses
        self._ahead = ahead
        self._states: dict[str, Any] = {}
        self._preparing = 0
        self._head: tuple[Block, tuple[Part, ...]] | None = None
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def next(self) -> Task | None:
        """The next task, waiting for one; None where there is nothing left or a thread failed."""
        with self._changed:
            while True:
                if self.error is not None:
                    return None
                self._head = self._head or next(self._blocks, None)
                if self._head is None:
                    return None
                block, parts = self._head
                missing = [
                    part.step.name
                    for part in parts
                    if part.step.name in self._needing and part.step.name not in self._states
                ]
                if not missing:
                    self._head = None
                    return Task(block, parts)
                step = self._to_prepare.pop(missing[0], None) or self._one_ahead()
                if step is not None:
                    self._preparing += 1
                    return Task(None, step=step)
                self._changed.wait()

    def _one_ahead(self) -> Step | None:
        if not self._to_prepare or len(self._states) + self._preparing >= self._ahead:
            return None
        return self._to_prepare.pop(next(iter(self._to_prepare)))

    def keep(self, step: Step, state: Any) -> None:
        """What a prepared step's blocks will be given."""
        with self._changed:
            self._states[step.name] = state
            self._preparing -= 1
            self._changed.notify_all()

    def state(self, part: Part) -> Any:
        """What the step of this part was prepared with."""
        return self._states.get(part.step.name)

    def finish(self, parts: Iterable[Part]) -> None:
        """Let go of what no part needs any more."""
        with self._changed:
            for part in parts:
                name = part.step.name
                if name in self._needing:
                    self._uses[name] -= 1
                    if not self._uses[name]:
                        del self._states[name]
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the work: the first error counts."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()
