"""The end of a round: the server's step, and every tensor in the server's dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.federation.contract import Aggregator, Given, ServerState
from alloykit.federation.structure import Structure
from alloykit.names import is_statistic
from alloykit.numerics import unusable_values
from alloykit.types import Checkpoint

Slots = dict[str, dict[str, Tensor]]


def finished(
    structure: Structure,
    server: Checkpoint | None,
    combined: Callable[[str], Tensor],
    others: Mapping[str, Tensor],
    aggregator: Aggregator,
    state: ServerState,
    clients: int,
) -> tuple[dict[str, Tensor], Slots]:
    """The new model, and what the step keeps for the next round.

    Args:
        structure: What is done with each tensor.
        server: The server's model; None where there is none, and then no step.
        combined: Name of an averaged tensor -> what the rule made of it.
        others: Tensors that are not averaged.
        aggregator: Whose step it is.
        state: What the server kept.
        clients: Number of clients that count.

    Raises:
        CheckpointError: The result is outside the range of a tensor's dtype.
    """
    slots: Slots = {name: dict(kept) for name, kept in state.tensors.items()}
    made: dict[str, Tensor] = dict(others)
    for name in structure.averaged:
        spec = structure.specs[name]
        value = combined(name)
        if aggregator.step is not None and server is not None:
            kept = {slot: values[name] for slot, values in slots.items() if name in values}
            own = server.read(name).to(value.dtype)
            given = Given(name, own, value, kept, state.round + 1, clients, state.numbers)
            value = _stepped(aggregator, given, slots)
        made[name] = value.to(spec.dtype)
        if spec.dtype != value.dtype and (wrong := unusable_values(made[name])):
            raise CheckpointError(
                f"The new {shown(name)} is outside the range of {spec.dtype}: {wrong}."
            )
    tensors = {}
    for name in structure.specs:
        first = structure.tied.get(name, name)
        if first not in made:  # kept
            assert server is not None
            made[first] = server.read(first).clone()
        tensors[name] = made[first]
    return tensors, slots


def _stepped(aggregator: Aggregator, given: Given, slots: Slots) -> Tensor:
    step = aggregator.step
    assert step is not None
    if is_statistic(given.name):
        return given.combined if step.buffers is None else step.buffers(given)
    value, kept = step.change(given)
    for slot, tensor in kept.items():
        slots.setdefault(slot, {})[given.name] = tensor
    return value
