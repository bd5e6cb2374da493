"""Compute blocks on several threads: reading, arithmetic and writing overlap."""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Block, Cutting, Part
from alloykit.execution.plan import Step
from alloykit.execution.scheduling import Schedule

Write = Callable[[Block, memoryview], None]
"""Puts the bytes of a block where they belong; called from several threads at a time."""

Done = Callable[[Block, bool], None]
"""Told after a block is written, and whether all of its values were sound."""


def run_blocks(
    arithmetic: Arithmetic,
    cutting: Cutting,
    indices: Sequence[int],
    write: Write,
    *,
    threads: int,
    done: Done,
) -> None:
    """Compute these blocks, and write each as soon as it is computed.

    Args:
        arithmetic: Computes ranges of tensors.
        cutting: What the blocks are.
        indices: Which of them to do.
        write: Where the bytes go.
        threads: Number of threads, at least 1.
        done: Called after each block, by the thread that wrote it.

    Raises:
        BaseException: The first error of any thread, after all of them have stopped.
    """
    surveyed, uses = _surveyed(arithmetic, cutting, indices)
    pairs = ((block, tuple(cutting.parts(block))) for block in map(cutting.block, indices))
    schedule = Schedule(pairs, surveyed, uses, ahead=threads)
    worker = _Worker(arithmetic, cutting, schedule, write, done)
    with one_thread_each():
        started = [threading.Thread(target=worker.run, daemon=True) for _ in range(threads - 1)]
        for thread in started:
            thread.start()
        worker.run()
        _wait_for(started, schedule)
    if schedule.error is not None:
        raise schedule.error


def _wait_for(threads: Sequence[threading.Thread], schedule: Schedule) -> None:
    """Wait for the other threads, in steps short enough that an interrupt is noticed."""
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
    except BaseException as error:
        schedule.fail(error)
        for thread in threads:
            thread.join()


def _surveyed(
    arithmetic: Arithmetic, cutting: Cutting, indices: Sequence[int]
) -> tuple[list[Step], Counter[str]]:
    """The steps that must be prepared, in the order of their first blocks, and their parts."""
    steps = [step for step in arithmetic.plan.steps if step.action == "merge"]
    elements = cutting.size // 2
    needing = {
        step.name
        for step in steps
        if (merged := arithmetic.merged(step)).method.survey or merged.whole(elements)
    }
    uses: Counter[str] = Counter()
    if not needing:
        return [], uses
    order: dict[str, Step] = {}
    for index in indices:
        for part in cutting.parts(cutting.block(index)):
            if part.step.name in needing:
                uses[part.step.name] += 1
                order.setdefault(part.step.name, part.step)
    return list(order.values()), uses


class _Worker:
    def __init__(
        self,
        arithmetic: Arithmetic,
        cutting: Cutting,
        schedule: Schedule,
        write: Write,
        done: Done,
    ) -> None:
        self.arithmetic = arithmetic
        self.cutting = cutting
        self.schedule = schedule
        self.write = write
        self.done = done

    def run(self) -> None:
        """Do tasks until there are none, or until one fails, here or elsewhere."""
        torch.set_num_threads(1)
        # Anonymous memory of a mapping is aligned to pages, as writing past the page cache asks.
        buffer = mmap.mmap(-1, self.cutting.size)
        try:
            while (task := self.schedule.next()) is not None:
                if task.step is not None:
                    self.schedule.keep(task.step, self._prepared(task.step))
                elif task.block is not None:
                    self._block(task.block, task.parts, buffer)
        except BaseException as error:
            self.schedule.fail(error)

    def _prepared(self, step: Step) -> object:
        merged = self.arithmetic.merged(step)
        return merged.prepare(whole=merged.whole(self.cutting.size // 2))

    def _block(self, block: Block, parts: tuple[Part, ...], buffer: mmap.mmap) -> None:
        flat = torch.frombuffer(buffer, dtype=torch.uint8)
        before = len(self.arithmetic.problems)
        for part in parts:
            self._part(part, flat)
        # Blocks in which another thread found a problem meanwhile are done anew: no harm.
        sound = len(self.arithmetic.problems) == before
        self.write(block, memoryview(buffer)[: block.size])
        self.schedule.finish(parts)
        self.done(block, sound)

    def _part(self, part: Part, flat: Tensor) -> None:
        dtype: torch.dtype = getattr(torch, part.step.dtype)
        size = (part.stop - part.start) * dtype.itemsize
        out = flat[part.offset : part.offset + size].view(dtype)
        if part.step.action != "merge":
            self.arithmetic.resolve(part.step, part.start, out)
            return
        merged = self.arithmetic.merged(part.step)
        whole = merged.whole(self.cutting.size // 2)
        merged.fill(part.start, out, self.schedule.state(part), whole=whole)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch from using several threads inside each of ours; what was set comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
