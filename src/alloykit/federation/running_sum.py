"""A sum of deltas that takes one client at a time: one model of memory for any number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.federation.structure import Structure
from alloykit.federation.values import BLOCK, Source, reader
from alloykit.types import Checkpoint


class RunningSum:
    """Σ factorᵢ · deltaᵢ, in float64.

    In float64 the order in which clients come changes the last digits of the sum, which do not
    show in the float32 that it is rounded to, but for one element in some hundred million.

    Args:
        structure: What is summed.
        server: The server's model.
    """

    def __init__(self, structure: Structure, server: Checkpoint) -> None:
        self._structure, self._server = structure, server
        self._factors = 0.0
        self._sums = {
            name: torch.zeros(structure.numel(name), dtype=torch.float64)
            for name in structure.averaged
        }

    def add(self, source: Source, factor: float) -> None:
        """Count one client."""
        if not source.delta:
            self._factors += factor
        for name, total in self._sums.items():
            read = reader(source.checkpoint, name)
            for start in range(0, len(total), BLOCK):
                stop = min(start + BLOCK, len(total))
                total[start:stop].add_(read(start, stop), alpha=factor)

    def combination(self, name: str, scale: float) -> Tensor:
        """Server + scale · Σ factorᵢ · deltaᵢ of one tensor, in the compute dtype."""
        spec = self._structure.specs[name]
        own = reader(self._server, name)(0, self._structure.numel(name)).double()
        # What was summed are models: the server's share of each delta comes off here.
        total = self._sums[name].mul(scale).add_(own, alpha=1.0 - scale * self._factors)
        result = total.to(self._structure.wide(name))
        if spec.dtype.is_complex:
            return torch.view_as_complex(result.reshape(*spec.shape, 2))
        return result.reshape(spec.shape)
