"""A sum of deltas that takes one client at a time: one model of memory for any number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.federation.structure import Structure
from alloykit.federation.values import BLOCK, Source, reader, write_delta
from alloykit.types import Checkpoint


class RunningSum:
    """Minus Σ factorᵢ · deltaᵢ, in float64; taking it off keeps the sign of zeros.

    In float64 the order in which clients come changes the last digits of the sum, which do not
    show in the float32 that it is rounded to, but for one element in some hundred million.

    Args:
        structure: What is summed.
        server: The server's model.
    """

    def __init__(self, structure: Structure, server: Checkpoint) -> None:
        self._structure, self._server = structure, server
        self._sums = {
            name: torch.zeros(structure.numel(name), dtype=torch.float64)
            for name in structure.averaged
        }

    def add(self, source: Source, factor: float) -> None:
        """Count one client."""
        for name, total in self._sums.items():
            origin, read = reader(self._server, name), reader(source.checkpoint, name)
            room = torch.empty(min(BLOCK, len(total)), dtype=self._structure.wide(name))
            for start in range(0, len(total), BLOCK):
                stop = min(start + BLOCK, len(total))
                delta = room[: stop - start]
                own = origin(start, stop).to(room.dtype)
                write_delta(read(start, stop), own, source.delta, delta)
                total[start:stop].sub_(delta, alpha=factor)

    def combination(self, name: str, divisor: float) -> Tensor:
        """Server + Σ factorᵢ · deltaᵢ / divisor of one tensor, in the compute dtype."""
        own = reader(self._server, name)(0, self._structure.numel(name)).double()
        result = torch.sub(own, self._sums[name] / divisor).to(self._structure.wide(name))
        return self._structure.shaped(name, result)
