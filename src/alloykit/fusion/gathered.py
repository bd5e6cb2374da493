"""What the members said on one split: rows for a head, and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alloykit.data.storage import room
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.types import Kind

BLOCK = 1 << 16
"""Rows copied at a time."""


@dataclass(frozen=True)
class Gathered:
    """What the members said on one split.

    Attributes:
        data: What a head is trained on.
        shape: What a head for it is built for.
        names: Of the members.
        outputs: Each member's log-probabilities or values, ``[row, output]``, also where the head
            is fed features: what the plain mean is made of.
        owner: ``[row]``: the example that each row belongs to; several where rows are tokens.
        kinds: What each member returns.
        layers: The layers that were watched, or None.
    """

    data: HeadData
    shape: HeadShape
    names: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    owner: Tensor
    kinds: tuple[Kind, ...]
    layers: tuple[str, ...] | None

    @property
    def averages(self) -> bool:
        """Whether all members give what the head returns, so that they have a plain mean."""
        return all(output.shape[-1] == self.shape.outputs for output in self.outputs)

    @property
    def numbers(self) -> Tensor:
        """``[row]``: the examples numbered from 0, without gaps."""
        steps = (self.owner.diff() != 0).long().cumsum(0)
        return torch.cat([steps.new_zeros(min(1, len(self.owner))), steps])

    @property
    def examples(self) -> int:
        """How many examples the rows belong to."""
        return int(self.numbers[-1]) + 1 if len(self.owner) else 0

    def keep(self, rows: Tensor) -> Gathered:
        """Only these rows."""
        context = None if self.data.context is None else _picked(self.data.context, rows)
        outputs = tuple(_picked(output, rows) for output in self.outputs)
        members = outputs
        if self.data.members is not self.outputs:
            members = tuple(_picked(member, rows) for member in self.data.members)
        return Gathered(
            HeadData(members, self.data.targets[rows], context),
            self.shape,
            self.names,
            outputs,
            self.owner[rows],
            self.kinds,
            self.layers,
        )


def _picked(tensor: Tensor, rows: Tensor) -> Tensor:
    """These rows, memory-mapped where they are many."""
    found = room((len(rows), *tensor.shape[1:]))
    for start in range(0, len(rows), BLOCK):
        found[start : start + BLOCK] = tensor[rows[start : start + BLOCK]]
    return found
