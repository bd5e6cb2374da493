"""The end of a round: the server's step, and every tensor in the server's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.federation.contract import Aggregator, Given, ServerState
from alloykit.federation.structure import Structure
from alloykit.names import is_statistic
from alloykit.numerics import unusable_values
from alloykit.types import Checkpoint, TensorSpec

Slots = dict[str, dict[str, Tensor]]
"""What a step keeps: slot -> name of a tensor -> tensor."""


@dataclass(frozen=True, eq=False)
class Ending:
    """What the end of a round needs to know.

    Attributes:
        structure: What is done with each tensor.
        server: The server's model; None where there is none, and then no step.
        combined: Name of an averaged tensor -> what the rule made of it.
        agreed: Tensors that are not averaged.
        aggregator: Whose step it is.
        state: What the server kept.
        clients: Number of clients that count.
        looked_at: Whether NaN and infinities in the new model are an error.
        total: See ``Given``.
    """

    structure: Structure
    server: Checkpoint | None
    combined: Callable[[str], Tensor]
    agreed: Mapping[str, Tensor]
    aggregator: Aggregator
    state: ServerState
    clients: int
    looked_at: bool = True
    total: float = 1.0

    def specs(self) -> dict[str, TensorSpec]:
        """Name -> shape, dtype and place of everything that ``tensors`` gives."""
        return dict(self.structure.specs)

    def tensors(self, slots: Slots) -> Iterator[tuple[str, Tensor]]:
        """The new model, one tensor at a time; of tied names the first.

        Args:
            slots: What the steps before kept; what this one keeps takes its place.

        Raises:
            CheckpointError: The result is outside the range of a tensor's dtype.
        """
        averaged = set(self.structure.averaged)
        for name, spec in self.structure.specs.items():
            if name in self.structure.tied:
                continue
            if name in averaged:
                yield name, self._rounded(name, self._stepped(name, slots), spec.dtype)
            elif name in self.agreed:
                yield name, self.agreed[name]
            else:  # kept
                assert self.server is not None
                yield name, self.server.read(name).clone()

    def _rounded(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        made = value.to(dtype)
        if (self.looked_at or dtype != value.dtype) and (wrong := unusable_values(made)):
            raise CheckpointError(
                f"The new {shown(name)} is outside the range of {dtype}: {wrong}."
            )
        return made

    def _stepped(self, name: str, slots: Slots) -> Tensor:
        value, step = self.combined(name), self.aggregator.step
        if step is None or self.server is None:
            return value
        kept = {slot: as_real(values[name]) for slot, values in slots.items() if name in values}
        own = as_real(self.server.read(name).to(value.dtype))
        number, numbers = self.state.round + 1, self.state.numbers
        given = Given(name, own, as_real(value), kept, number, self.clients, numbers, self.total)
        if is_statistic(name):
            return value if step.buffers is None else as_was(step.buffers(given), value)
        stepped, keeps = step.change(given)
        for slot, tensor in keeps.items():
            slots.setdefault(slot, {})[name] = as_was(tensor, value)
        return as_was(stepped, value)


def as_real(tensor: Tensor) -> Tensor:
    """A step sees complex numbers as pairs of real ones, as torch's optimizers do."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_was(tensor: Tensor, like: Tensor) -> Tensor:
    """The complex tensor of these pairs, where the other one is complex."""
    return torch.view_as_complex(tensor.contiguous()) if like.is_complex() else tensor
