"""A tensor that is stored in rectangular chunks, read by flat range as if it were in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.file_checkpoint import Record
from alloykit.checkpoints.source_file import SourceFile

Sizes: TypeAlias = tuple[int, ...]


@dataclass
class Chunk:
    """A box of elements of a tensor.

    Attributes:
        offsets: Where it begins in each dimension.
        sizes: How far it reaches.
        open: Finds where its elements are stored; called when the first of them is asked for.
    """

    offsets: Sizes
    sizes: Sizes
    open: Callable[[], Record]

    @cached_property
    def record(self) -> Record:
        """Where its elements are stored, row-major."""
        return self.open()


def tiling_problem(shape: Sizes, chunks: Sequence[Chunk]) -> str:
    """Why the chunks do not make up the whole tensor, each element once; "" where they do.

    They must form a grid: in every dimension the same cuts all the way through. That is how
    tensors are sharded over a mesh of devices, and it takes linear time to check.

    Args:
        shape: Of the whole tensor.
        chunks: None of them empty.
    """
    if any(len(c.offsets) != len(shape) or len(c.sizes) != len(shape) for c in chunks):
        return "its chunks have another number of dimensions"
    if not chunks:
        return "none of its chunks is there"
    cells = 1
    for axis, whole in enumerate(shape):
        cuts = sorted({0, whole, *(chunk.offsets[axis] for chunk in chunks)})
        reach = dict(pairwise(cuts))
        cells *= len(reach)
        for chunk in chunks:
            start, size = chunk.offsets[axis], chunk.sizes[axis]
            if start + size != reach.get(start):
                return f"a chunk of {list(chunk.sizes)} at {list(chunk.offsets)} has no place there"
    distinct = len({chunk.offsets for chunk in chunks})
    return "" if distinct == cells else f"{distinct} of its {cells} chunks are there"


class ChunkedRegion:
    """The bytes of a tensor in chunks, in row-major order; only the chunks asked for are read.

    Args:
        file: What describes the chunks, for messages.
        shape: Of the whole tensor.
        dtype: Its element type.
        chunks: As ``tiling_problem`` wants them.
    """

    def __init__(
        self, file: SourceFile, shape: Sizes, dtype: torch.dtype, chunks: Sequence[Chunk]
    ) -> None:
        self.file = file
        self._shape = shape
        self._itemsize = dtype.itemsize
        self._chunks = chunks

    @cached_property
    def _placed(self) -> list[_Placed]:
        axes = _cut_axes(self._shape, self._chunks)
        whole = _merged(self._shape, axes)
        placed = [
            _Placed(
                chunk,
                whole,
                _merged_at(chunk.offsets, self._shape, axes),
                _merged(chunk.sizes, axes),
            )
            for chunk in self._chunks
        ]
        return sorted(placed, key=lambda each: each.first)

    def read(self, start: int, stop: int) -> Tensor:
        """Bytes ``start`` to ``stop`` of the region, as a fresh uint8 tensor."""
        size = self._itemsize
        first, last = start // size, stop // size
        if len(self._placed) == 1:
            return as_bytes(self._placed[0].chunk.record.read(first, last))
        out = np.empty(stop - start, np.uint8)
        for placed in self._placed:
            if placed.first < last and first < placed.last:
                placed.copy_to(out, first, last, size)
        return torch.from_numpy(out)


def _cut_axes(shape: Sizes, chunks: Sequence[Chunk]) -> list[int]:
    """The dimensions that some chunk does not reach through, and the first; others join them."""
    cut = [
        axis
        for axis in range(1, len(shape))
        if any(chunk.sizes[axis] != shape[axis] for chunk in chunks)
    ]
    return [0, *cut]


def _merged(sizes: Sizes, axes: Sequence[int]) -> Sizes:
    """Sizes with every dimension that is not cut joined to the one before it."""
    return tuple(
        math.prod(sizes[axis:end]) for axis, end in zip(axes, [*axes[1:], len(sizes)], strict=True)
    )


def _merged_at(offsets: Sizes, shape: Sizes, axes: Sequence[int]) -> Sizes:
    """Offsets in the joined dimensions."""
    return tuple(
        offsets[axis] * math.prod(shape[axis + 1 : end]) if axis < len(offsets) else 0
        for axis, end in zip(axes, [*axes[1:], len(shape)], strict=True)
    )


class _Placed:
    """A chunk and its place in a tensor whose uncut dimensions were joined."""

    def __init__(self, chunk: Chunk, shape: Sizes, offsets: Sizes, sizes: Sizes) -> None:
        self.chunk = chunk
        self._offsets = offsets
        self._sizes = sizes
        self._steps = _steps(shape)
        self._inner = _steps(sizes)
        self._run = sizes[-1]
        self.first = self._position(0)
        self.last = self._position(math.prod(sizes) - 1) + 1

    def copy_to(
        self, out: np.ndarray[tuple[int], np.dtype[np.uint8]], first: int, last: int, size: int
    ) -> None:
        """Copy what lies in the flat range ``first`` to ``last`` of the tensor."""
        at, end = self._before(first), self._before(last)
        if at == end:
            return
        data = as_bytes(self.chunk.record.read(at, end)).numpy()
        begin = at
        while at < end:
            rows = self._whole_runs(at, end)
            length = self._run if rows else min(end - at, self._run - at % self._run)
            count = max(rows, 1)
            # An array made over a buffer: it checks that rows and steps stay inside.
            target: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = np.ndarray(
                (count, length * size),
                np.uint8,
                out.data,
                (self._position(at) - first) * size,
                (self._pitch * size, 1),
            )
            taken = count * length
            piece = data[(at - begin) * size : (at - begin + taken) * size]
            target[:] = piece.reshape(count, length * size)
            at += taken

    @property
    def _pitch(self) -> int:
        """Elements from one run to the next."""
        return self._steps[-2] if len(self._steps) > 1 else self._run

    def _whole_runs(self, at: int, end: int) -> int:
        """How many whole runs of elements begin at element ``at``, evenly spaced; 0 in a run."""
        if at % self._run:
            return 0
        per_plane = self._sizes[-2] if len(self._sizes) > 1 else 1
        return min((end - at) // self._run, per_plane - at // self._run % per_plane)

    def _position(self, element: int) -> int:
        """Where an element of the chunk lies in the flattened tensor."""
        position = 0
        for inner, offset, step in zip(self._inner, self._offsets, self._steps, strict=True):
            index, element = divmod(element, inner)
            position += (index + offset) * step
        return position

    def _before(self, position: int) -> int:
        """How many elements of the chunk lie before a place in the flattened tensor."""
        count = 0
        for step, offset, size, inner in zip(
            self._steps, self._offsets, self._sizes, self._inner, strict=True
        ):
            index, position = divmod(position, step)
            inside = min(max(index - offset, 0), size)
            count += inside * inner
            if not offset <= index < offset + size:
                break
        return count


def _steps(sizes: Sizes) -> Sizes:
    """Elements between neighbours in each dimension of a row-major tensor."""
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
