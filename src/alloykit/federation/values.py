"""The clients' values, walked in blocks: lengths, inner products, and sums of deltas.

A delta is what a client's tensor differs from the server's by; where there is no server, from the
first client's. Memory is some blocks, however many clients there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from alloykit.federation.contract import Matrix
from alloykit.federation.fused import running_mean, sum_of_deltas
from alloykit.federation.holding import in_memory
from alloykit.federation.structure import Structure
from alloykit.threads import mapped
from alloykit.types import Checkpoint, TensorGroup

BLOCK = 1 << 16
"""Elements of one client that are summed at a time: what the processor's cache holds."""

FEWEST, TOGETHER = 1 << 12, 1 << 21
"""Least elements of a block of all clients at once, and elements of all clients in it."""

SMALLEST = 1e-30
"""Squared lengths below this are taken in float64, because float32 loses their digits."""

FAR = 1e4
"""Squared lengths over this multiple of the median are those of absurd clients."""

WORTH_THREADS = 1 << 22
"""Elements of all clients together below which one thread is as fast as several."""

Made = TypeVar("Made")
Read = Callable[[int, int], Tensor]
Rows = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class Source:
    """One client's tensors.

    Attributes:
        client: Its name.
        checkpoint: Its tensors.
        delta: Whether they are changes already.
    """

    client: str
    checkpoint: Checkpoint
    delta: bool = False


@dataclass(frozen=True, eq=False)
class Values:
    """The averaged tensors of several clients beside the server's.

    Attributes:
        structure: What is averaged.
        sources: The clients.
        server: The server's model, or None.
        threads: Of the arithmetic, each with a tensor of its own.
    """

    structure: Structure
    sources: Sequence[Source]
    server: Checkpoint | None
    threads: int = 1

    def only(self, positions: Sequence[int]) -> Values:
        """The same with these clients only."""
        return replace(self, sources=[self.sources[i] for i in positions])

    def combination(
        self, name: str, coefficients: Sequence[float], squares: list[float] | None = None
    ) -> Tensor:
        """Server + Σ cᵢ·deltaᵢ of one tensor, in the compute dtype.

        Deltas are summed rather than models: what no client changed stays as it is to the bit, and
        small changes keep their digits. The sum is taken off, because -0.0 + 0.0 is 0.0.

        Args:
            name: Of the tensor.
            coefficients: One per client; clients with 0 are not read, unless ``squares`` asks.
            squares: The squared lengths of the deltas are added to these; NaN and infinities show.

        Shapes:
            -> the tensor's shape
        """
        result = torch.empty(self.structure.numel(name), dtype=self.structure.wide(name))
        lying = self._lying(name)
        if lying is None:
            self._walk(name, coefficients, result, squares)
            return self.structure.shaped(name, result)
        measured = squares is not None
        own, *raws = lying
        lengths = sum_of_deltas(raws, own, list(coefficients), result, BLOCK, measured)
        for i, length in enumerate(lengths if squares is not None else ()):
            # Lengths outside the range of float32 are measured again.
            wrong = not math.isfinite(length) or 0 < length < SMALLEST
            squares[i] += self._square(name, i) if wrong else length  # type: ignore[index]
        return self.structure.shaped(name, result)

    def mean(self, name: str, weights: Sequence[float]) -> Tensor:
        """Σ wᵢ·clientᵢ of one tensor, for weights that sum to one, in the compute dtype.

        A running mean: about a third faster than the sum of deltas, which has more exact digits
        where clients changed little.
        """
        lying = self._lying(name)
        if lying is None or not weights[0]:
            return self.combination(name, weights)
        result = torch.empty(self.structure.numel(name), dtype=self.structure.wide(name))
        so_far = list(itertools.accumulate(weights))
        steps = [weight / total for weight, total in zip(weights, so_far, strict=True)]
        running_mean(lying[1:], steps, result, BLOCK)
        return self.structure.shaped(name, result)

    def _lying(self, name: str) -> list[Tensor] | None:
        """The server's elements and all clients', where they lie in memory in the compute dtype."""
        origin = self.sources[0].checkpoint if self.server is None else self.server
        found = [_flat(each, name) for each in (origin, *(s.checkpoint for s in self.sources))]
        wide = self.structure.wide(name)
        fits = all(flat is not None and flat.dtype == wide for flat in found)
        return found if fits and not any(s.delta for s in self.sources) else None  # type: ignore[return-value]

    def _walk(
        self, name: str, coefficients: Sequence[float], result: Tensor, squares: list[float] | None
    ) -> None:
        origin, reads = self._origin(name), [self._reader(s, name) for s in self.sources]
        room, total = torch.empty((2, min(BLOCK, len(result))), dtype=result.dtype)
        for start in range(0, len(result), BLOCK):
            stop = min(start + BLOCK, len(result))
            own = origin(start, stop).to(result.dtype)
            change, summed = room[: stop - start], total[: stop - start].zero_()
            for i, factor in enumerate(coefficients):
                if factor or squares is not None:
                    write_delta(reads[i](start, stop), own, self.sources[i].delta, change)
                    if squares is not None:
                        squares[i] += _square(change)
                    summed.sub_(change, alpha=factor)
            torch.sub(own, summed, out=result[start:stop])

    def _square(self, name: str, position: int) -> float:
        """The squared length of one delta, in float64."""
        source = self.sources[position]
        origin, read = self._origin(name), self._reader(source, name)
        change = read(0, self.structure.numel(name)).double()
        if not source.delta:
            change = change - origin(0, len(change)).double()
        return float(torch.dot(change, change))

    def squares(self) -> list[float]:
        """The squared lengths of all deltas; NaN and infinities show in them."""
        return self.combinations([0.0] * len(self.sources))[1]

    def combinations(self, coefficients: Sequence[float]) -> tuple[dict[str, Tensor], list[float]]:
        """``combination`` of every tensor, and the squared lengths of all deltas.

        Tensors are shared out to the threads; each adds up alone, so that the bits do not depend
        on how many there are. Without coefficients but 0 no sum is made, and there are no tensors.
        """
        wanted = any(coefficients)

        def one(name: str) -> tuple[Tensor | None, list[float]]:
            squares = [0.0] * len(self.sources)
            found = self.combination(name, coefficients, squares)
            return found if wanted else None, squares

        made = self.over_tensors(one)
        squares = [math.fsum(each) for each in zip(*(s for _, s in made.values()), strict=True)]
        sums = {name: found for name, (found, _) in made.items() if found is not None}
        return sums, squares or [0.0] * len(self.sources)

    def over_tensors(self, make: Callable[[str], Made]) -> dict[str, Made]:
        """What a function makes of each averaged tensor, by all threads."""
        return dict(self._each_tensor(make))

    def _each_tensor(self, make: Callable[[str], Made]) -> Iterator[tuple[str, Made]]:
        """The same one by one, the largest first."""
        names = sorted(self.structure.averaged, key=lambda n: -self.structure.numel(n))
        small = sum(map(self.structure.numel, names)) * len(self.sources) < WORTH_THREADS
        return zip(names, mapped(make, names, 1 if small else self.threads), strict=True)

    def products(self) -> Matrix:
        """Inner products of all deltas.

        They are taken of what the deltas differ from their centre by, so that distances between
        clients are as good where all moved far in one direction.

        Shapes:
            -> [client, client], float64
        """

        def one(name: str) -> Matrix:
            found = self._products_of(name, self.structure.wide(name))
            if np.isfinite(found).all():
                return found
            # Large numbers leave the range of float32; NaN and infinities show in float64 too.
            return self._products_of(name, torch.float64)

        total = np.zeros((len(self.sources),) * 2)
        for _, products in self._each_tensor(one):
            total += products
        return total

    def _products_of(self, name: str, wide: torch.dtype) -> Matrix:
        count = len(self.sources)
        spread, along, mean = np.zeros((count, count)), np.zeros(count), 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for changes in self._changes(name, wide):
                middle = centre(changes)
                changes -= middle
                spread += changes @ changes.T
                along += changes @ middle
                mean += float(middle @ middle)
            return spread + along[:, None] + along[None, :] + mean

    def blockwise(self, name: str, combine: Callable[[TensorGroup], Tensor]) -> Tensor:
        """What a function makes of all clients' values, block by block, in the compute dtype."""
        numel, wide = self.structure.numel(name), self.structure.wide(name)
        result = torch.empty(numel, dtype=wide)
        clients = tuple(source.client for source in self.sources)
        weights = (1.0 / len(clients),) * len(clients)
        reads = [self._reader(source, name) for source in self.sources]
        origin = None if self.server is None else self._origin(name)
        for start, stop in self._ranges(numel):
            own = None if origin is None else origin(start, stop).to(wide)
            blocks = [read(start, stop).to(wide) for read in reads]
            for i, source in enumerate(self.sources):
                if source.delta and own is not None:
                    blocks[i] = blocks[i] + own
            group = TensorGroup(name, clients, tuple(blocks), weights, base=own, start=start)
            result[start:stop] = combine(group)
        return self.structure.shaped(name, result)

    def _ranges(self, numel: int) -> Iterator[tuple[int, int]]:
        size = max(FEWEST, TOGETHER // max(len(self.sources), 1))
        size += size % 2
        return ((start, min(start + size, numel)) for start in range(0, numel, size))

    def _changes(self, name: str, wide: torch.dtype) -> Iterator[Rows]:
        """The deltas of one tensor, block by block, in the same memory: [client, element]."""
        numel = self.structure.numel(name)
        origin, reads = self._origin(name), [self._reader(s, name) for s in self.sources]
        size = max((stop - start for start, stop in self._ranges(numel)), default=0)
        room = torch.empty((len(reads), size), dtype=wide)
        for start, stop in self._ranges(numel):
            own, changes = origin(start, stop).to(wide), room[:, : stop - start]
            for row, read, source in zip(changes, reads, self.sources, strict=True):
                write_delta(read(start, stop), own, source.delta, row)
            yield changes.numpy()

    def _origin(self, name: str) -> Read:
        checkpoint = self.sources[0].checkpoint if self.server is None else self.server
        return reader(checkpoint, name)

    def _reader(self, source: Source, name: str) -> Read:
        return reader(source.checkpoint, name)


def centre(changes: Rows) -> Rows:
    """The mean of the clients, but for those that are far longer than most.

    Around a mean that one absurd client pulled away, the others would lose their digits.

    Shapes:
        changes [client, element] -> [element]

    Example:
        >>> centre(np.array([[1.0], [3.0], [2.0], [1e9]]))
        array([2.])
    """
    squares = np.einsum("ij,ij->i", changes, changes).astype(np.float64)
    known = squares[np.isfinite(squares)]
    if not len(known):
        return np.zeros_like(changes[0])
    near = squares <= FAR * np.median(known)
    return np.asarray((changes if near.all() else changes[near]).mean(axis=0))


def reader(checkpoint: Checkpoint, name: str) -> Read:
    """Reads ranges of the real elements of one tensor.

    What lies in memory in one piece is cut without asking the checkpoint each time.
    """
    flat = _flat(checkpoint, name)
    if flat is not None:
        return lambda start, stop: flat[start:stop]
    if not checkpoint.specs()[name].dtype.is_complex:
        return lambda start, stop: checkpoint.read(name, start=start, stop=stop)

    def read(start: int, stop: int) -> Tensor:
        # Blocks begin and end at pairs: their sizes are even, and so is the number of elements.
        pairs = checkpoint.read(name, start=start // 2, stop=stop // 2)
        return torch.view_as_real(pairs).reshape(-1)

    return read


def _flat(checkpoint: Checkpoint, name: str) -> Tensor | None:
    """All real elements of a tensor that lies in memory in one piece; else None."""
    if not in_memory(checkpoint):
        return None
    whole = checkpoint.read(name)
    if not whole.is_contiguous():
        return None
    return (torch.view_as_real(whole) if whole.is_complex() else whole).reshape(-1)


def write_delta(block: Tensor, own: Tensor, is_delta: bool, out: Tensor) -> None:
    """Write what a block differs from the server's by into ``out``."""
    if is_delta:
        out.copy_(block)
    elif block.dtype == out.dtype:
        torch.sub(block, own, out=out)
    else:
        out.copy_(block).sub_(own)


def _square(change: Tensor) -> float:
    found = float(torch.dot(change, change))
    if math.isfinite(found) and not 0 < found < SMALLEST:
        return found
    wide = change.double()
    return float(torch.dot(wide, wide))
