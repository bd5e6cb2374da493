"""Compute blocks on several threads: reading, arithmetic and writing overlap."""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Block, Cutting, Part
from alloykit.execution.output import PartialFiles
from alloykit.execution.plan import Step
from alloykit.execution.scheduling import Schedule
from alloykit.threads import one_thread_each

INTERVAL = 0.1
"""Seconds after which a wait looks again, whatever became of its wake-up."""

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

Done = Callable[[Block, bool], None]
"""Told after a block is written, and whether all of its values were sound."""


def run_blocks(
    arithmetic: Arithmetic,
    cutting: Cutting,
    indices: Sequence[int],
    files: PartialFiles,
    *,
    threads: int,
    done: Done,
    states: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Compute these blocks, and write each as soon as it is computed.

    The calling thread only waits: an interrupt that reaches it can leave no lock behind.

    Args:
        arithmetic: Computes ranges of tensors.
        cutting: What the blocks are.
        indices: Which of them to do.
        files: Where the bytes go.
        threads: Number of threads, at least 1.
        done: Called after each block, by the thread that wrote it.
        states: Name -> what its survey found, of tensors that were surveyed elsewhere.

    Raises:
        BaseException: The first error of any thread, after all of them have stopped.
    """
    uses = surveyed(arithmetic, cutting, indices)
    steps = [cutting.steps[name] for name in uses if name not in states]
    pairs = ((block, tuple(cutting.parts(block))) for block in map(cutting.block, indices))
    schedule = Schedule(pairs, steps, uses, ahead=threads, given=states)
    worker = _Worker(arithmetic, cutting, schedule, files, done)
    with one_thread_each():
        if any(needs_model_state(arithmetic, step) for step in steps):
            _ = arithmetic.model_state
        try:
            for _ in range(threads):
                # No daemons: killed in the middle of arithmetic they would take the process along.
                threading.Thread(target=worker.run, daemon=False).start()
            worker.wait(threads)
        except BaseException as error:
            schedule.fail(error)
            worker.wait(threads)
    if schedule.error is not None:
        raise schedule.error


def needs_model_state(arithmetic: Arithmetic, step: Step) -> bool:
    """Whether a step waits for a survey of the whole model, which is then made once."""
    method = arithmetic.merged(step).method
    return method.survey is not None and method.scope == "model"


def surveyed(arithmetic: Arithmetic, cutting: Cutting, indices: Sequence[int]) -> Counter[str]:
    """Names of the tensors of which something must be known before their blocks are computed.

    In the order of these blocks, with the number of parts of them in these blocks.
    """
    merged = [arithmetic.merged(step) for step in arithmetic.plan.steps if step.action == "merge"]
    block = cutting.size // 2
    names = {each.step.name for each in merged if each.method.survey or each.whole(block)}
    blocks = map(cutting.block, indices if names else ())
    parts = (part.step.name for block in blocks for part in cutting.parts(block))
    return Counter(name for name in parts if name in names)


class _Worker:
    """What every thread does; one object for all of them."""

    def __init__(
        self,
        arithmetic: Arithmetic,
        cutting: Cutting,
        schedule: Schedule,
        files: PartialFiles,
        done: Done,
    ) -> None:
        self.arithmetic = arithmetic
        self.cutting = cutting
        self.schedule = schedule
        self.files = files
        self.done = done
        self.unsound: set[str] = set()
        # The bare lock: an interrupt in the midst of what is built upon it leaves that unusable.
        self.woken = threading.Lock()
        self.woken.acquire()

    def wait(self, threads: int) -> None:
        """Wait for the threads to end, whatever interrupts: they write to files that are open.

        They end after what they are at. ``Thread.join`` will not do: interrupted, it takes a
        thread that runs for one that has ended.
        """
        while True:
            try:
                while not self.schedule.ended(threads):
                    self.woken.acquire(timeout=INTERVAL)
                return
            except BaseException as error:
                self.schedule.fail(error)

    def run(self) -> None:
        """Do tasks until there are none, or until one fails, here or elsewhere."""
        if not self.schedule.enter():
            return
        try:
            self._tasks()
        except BaseException as error:
            self.schedule.fail(error)
        finally:
            self.schedule.leave()
            with suppress(RuntimeError):  # another one has woken it already
                self.woken.release()

    def _tasks(self) -> None:
        torch.set_num_threads(1)
        # A mapping begins at a page, as writing past the page cache asks.
        view = memoryview(mmap.mmap(-1, self.cutting.size, flags=PRIVATE))
        while (task := self.schedule.next()) is not None:
            if not threading.main_thread().is_alive():
                raise SystemExit("the program has ended")
            if task.step is not None:
                self.schedule.keep(task.step, self._prepared(task.step))
            elif task.block is not None:
                self._block(task.block, task.parts, view)

    def _prepared(self, step: Step) -> object:
        before = len(self.arithmetic.problems)
        merged = self.arithmetic.merged(step)
        state = merged.prepare(whole=merged.whole(self.cutting.size // 2))
        if len(self.arithmetic.problems) != before:
            # What is computed as a whole is not looked at again when its blocks are cut from it.
            self.unsound.add(step.name)
        return state

    def _block(self, block: Block, parts: tuple[Part, ...], view: memoryview) -> None:
        before = len(self.arithmetic.problems)
        flat = torch.frombuffer(view, dtype=torch.uint8)
        for part in parts:
            self._part(part, flat)
        # Blocks in which another thread found a problem meanwhile are done anew: no harm.
        sound = len(self.arithmetic.problems) == before
        sound = sound and not any(part.step.name in self.unsound for part in parts)
        self.files.write(block, view[: block.size])
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
