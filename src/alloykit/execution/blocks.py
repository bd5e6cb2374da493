"""The files of a result cut into aligned blocks: the pieces that workers compute and write."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from alloykit.checkpoints.layout import PAGE, Layout
from alloykit.execution.plan import Plan, Step


@dataclass(frozen=True)
class Part:
    """Elements of one tensor within a block.

    Attributes:
        step: The step that computes them.
        start: First element.
        stop: End of the elements.
        offset: First byte within the block.
    """

    step: Step
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Block:
    """A run of bytes of one file.

    Attributes:
        index: Its number among all blocks.
        file: Position of its file.
        start: First byte in the file, a multiple of 4096.
        stop: End in the file.
    """

    index: int
    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class Cutting:
    """All blocks of a result. They are made when asked for: there may be very many.

    Args:
        plan: The plan whose result is written.
        layouts: The layout of every file.
        block: Bytes of a block, rounded up to a multiple of 4096.
    """

    def __init__(self, plan: Plan, layouts: Sequence[Layout], block: int) -> None:
        self.layouts = tuple(layouts)
        self.size = max(PAGE, -(-block // PAGE) * PAGE)
        self.steps = {step.name: step for step in plan.steps}
        self._firsts = [0]
        for layout in self.layouts:
            count = -(-(layout.size - len(layout.header)) // self.size)
            self._firsts.append(self._firsts[-1] + count)

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of data in all files."""
        return sum(layout.size - len(layout.header) for layout in self.layouts)

    def block(self, index: int) -> Block:
        """The block of that number."""
        # Of files that begin with the same number the last one: those before it have no data.
        file = bisect.bisect_right(self._firsts, index) - 1
        layout = self.layouts[file]
        start = len(layout.header) + (index - self._firsts[file]) * self.size
        return Block(index, file, start, min(start + self.size, layout.size))

    def parts(self, block: Block) -> list[Part]:
        """What the bytes of a block are, in their order."""
        starts, steps = self._tensors[block.file]
        found = []
        position = max(0, bisect.bisect_right(starts, block.start) - 1)
        while position < len(starts) and starts[position] < block.stop:
            step, first = steps[position], starts[position]
            size = step_itemsize(step)
            low = max(block.start, first)
            high = min(block.stop, first + step_nbytes(step))
            if high > low:
                elements = (low - first) // size, (high - first) // size
                found.append(Part(step, *elements, low - block.start))
            position += 1
        return found

    @cached_property
    def _tensors(self) -> list[tuple[list[int], list[Step]]]:
        """For every file the first bytes of its tensors, ascending, and their steps."""
        return [
            (
                list(layout.offsets.values()),
                [self.steps[name] for name in layout.offsets],
            )
            for layout in self.layouts
        ]


def step_itemsize(step: Step) -> int:
    """Bytes of one element of a step's result."""
    dtype: torch.dtype = getattr(torch, step.dtype)
    return dtype.itemsize


def step_nbytes(step: Step) -> int:
    """Bytes of a step's result."""
    return torch.Size(step.shape).numel() * step_itemsize(step)
