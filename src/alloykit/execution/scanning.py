"""Walk whole tensors in fixed blocks: what a method's survey is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alloykit.numerics import inner_products
from alloykit.types import GRAIN, MergeMethod, TensorGroup, Unit

SAMPLE, PIECES = 1 << 16, 64
"""Elements in a sample of a whole tensor, and from how many places they are taken."""

Read = Callable[[int, int], TensorGroup]
"""Start and stop of a flat range -> that block of every member, flat, in the compute dtype."""


def slice_numel(shape: tuple[int, ...], unit: Unit) -> int:
    """Elements that a method of this unit must not be given less of: 1, a slice, or everything."""
    if unit == "element":
        return 1
    if unit == "row" and len(shape) > 1:
        return max(1, math.prod(shape[1:]))
    return max(1, math.prod(shape))


def shaped(group: TensorGroup, shape: tuple[int, ...], unit: Unit) -> TensorGroup:
    """A flat block in the shape that a method of this unit is given."""
    if unit == "element":
        return group
    form = shape if unit == "tensor" or len(shape) < 2 else (-1, *shape[1:])
    if not math.prod(shape):
        form = shape
    count = group.tensors[0].numel()
    return replace(
        group,
        tensors=tuple(tensor.reshape(form) for tensor in group.tensors),
        base=None if group.base is None else group.base.reshape(form),
        stats={
            kind: tuple(t.reshape(form) if t.numel() == count else t for t in each)
            for kind, each in group.stats.items()
        },
    )


@dataclass(frozen=True)
class TensorScan:
    """One tensor of all members, walked in blocks that depend on its shape alone.

    Attributes:
        name: Name of the tensor.
        shape: Its shape.
        members: Ids of the members.
        weights: One per member.
        seed: The seed of the merge.
        read: Reads a flat block.
        unit: How the blocks are shaped.
        walk: Makes a reader for one pass in order; by default ``read``.
        fused: A faster way to the products, which may find that it cannot be used.
    """

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    weights: tuple[float, ...]
    seed: int
    read: Read
    unit: Unit = "element"
    walk: Callable[[], Read] | None = None
    fused: Callable[[], Tensor | None] | None = None

    @property
    def numel(self) -> int:
        """Number of elements of one member."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[TensorGroup]:
        """The blocks, in order."""
        unit: Unit = "row" if self.unit == "row" else "element"
        step = slice_numel(self.shape, unit)
        step *= max(1, GRAIN // step)
        read = self.walk() if self.walk else self.read
        for start in range(0, self.numel, step):
            yield shaped(read(start, min(start + step, self.numel)), self.shape, unit)

    def total(self, statistic: Callable[[TensorGroup], Tensor]) -> Tensor:
        """Σ over all blocks of ``statistic(block)``, in float64 or int64."""
        if not self.numel:
            return _of_nothing(self, statistic)
        return _summed(map(statistic, self.blocks()))

    def products(self) -> Tensor:
        """Inner products of the whole task vectors, in float64."""
        found = self.fused() if self.fused is not None else None
        return found if found is not None else self.total(_task_vector_products)

    def sample(self) -> TensorGroup:
        """At most 65,536 of the elements, from evenly spaced places, flat."""
        if self.numel <= SAMPLE:
            return self.read(0, self.numel)
        piece = SAMPLE // PIECES
        starts = [(self.numel - piece) * index // (PIECES - 1) for index in range(PIECES)]
        return _joined([self.read(start, start + piece) for start in starts])


@dataclass(frozen=True)
class ModelScan:
    """Every merged tensor of the model, one after the other, as if it were one long vector."""

    tensors: Sequence[TensorScan]
    name: str = ""

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the members."""
        return self.tensors[0].members

    @property
    def weights(self) -> tuple[float, ...]:
        """One per member."""
        return self.tensors[0].weights

    @property
    def seed(self) -> int:
        """The seed of the merge."""
        return self.tensors[0].seed

    @property
    def shape(self) -> tuple[int, ...]:
        """``(numel,)``."""
        return (self.numel,)

    @property
    def numel(self) -> int:
        """Number of elements of one member."""
        return sum(tensor.numel for tensor in self.tensors)

    def total(self, statistic: Callable[[TensorGroup], Tensor]) -> Tensor:
        """Σ over the blocks of all tensors of ``statistic(block)``, in float64 or int64."""
        return _summed(tensor.total(statistic) for tensor in self.tensors)

    def products(self) -> Tensor:
        """Inner products of the task vectors of the whole model, in float64."""
        return _summed(tensor.products() for tensor in self.tensors)

    def sample(self) -> TensorGroup:
        """At most about 65,536 of the elements, spread over the tensors by their size."""
        groups = []
        for tensor in self.tensors:
            share = max(1, SAMPLE * tensor.numel // max(1, self.numel))
            step = max(1, tensor.numel // max(1, share // 1024 + 1))
            groups += [
                tensor.read(start, min(start + min(1024, share), tensor.numel))
                for start in range(0, tensor.numel, step)
            ]
        return _joined(groups)


def merge_whole(method: MergeMethod, group: TensorGroup) -> Tensor:
    """Survey and merge one whole group that is in memory; flat pieces are the engine's affair.

    Args:
        method: Any method.
        group: Whole tensors ``[*shape]`` in a compute dtype.
    """
    shape = tuple(group.tensors[0].shape)

    def read(start: int, stop: int) -> TensorGroup:
        def cut(tensor: Tensor) -> Tensor:
            return tensor.reshape(-1)[start:stop]

        return replace(
            group,
            start=start,
            tensors=tuple(map(cut, group.tensors)),
            base=None if group.base is None else cut(group.base),
            stats={
                kind: tuple(cut(t) if t.shape == group.tensors[0].shape else t for t in each)
                for kind, each in group.stats.items()
            },
        )

    scan = TensorScan(
        group.name, shape, group.members, group.weights, group.seed, read, method.unit
    )
    state: Any = method.survey(scan) if method.survey else None
    whole = shaped(read(0, scan.numel), shape, method.unit)
    return method.merge(whole, state).reshape(shape)


def _task_vector_products(group: TensorGroup) -> Tensor:
    vectors = [tensor.reshape(-1) for tensor in group.tensors]
    if group.base is not None:
        base = group.base.reshape(-1)
        vectors = [vector - base for vector in vectors]
    return inner_products(vectors)


def _summed(parts: Iterator[Tensor]) -> Tensor:
    total: Tensor | None = None
    for part in parts:
        wide = part.cpu().to(torch.float64 if part.is_floating_point() else torch.int64)
        # Out of place the first time: a statistic may hand out a view of its input.
        total = wide.clone() if total is None else total.add_(wide)
    assert total is not None
    return total


def _of_nothing(scan: TensorScan, statistic: Callable[[TensorGroup], Tensor]) -> Tensor:
    return _summed(iter([statistic(shaped(scan.read(0, 0), scan.shape, scan.unit))]))


def _joined(groups: Sequence[TensorGroup]) -> TensorGroup:
    first = groups[0]
    columns = zip(*(group.tensors for group in groups), strict=True)
    bases = [group.base for group in groups if group.base is not None]
    stats = {
        kind: tuple(torch.cat([group.stats[kind][i] for group in groups]) for i in range(len(each)))
        for kind, each in first.stats.items()
        if each[0].dim() == 1
    }
    return replace(
        first,
        tensors=tuple(torch.cat(column) for column in columns),
        base=torch.cat(bases) if bases else None,
        stats=stats,
    )
