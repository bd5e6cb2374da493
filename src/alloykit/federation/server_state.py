"""What a server keeps between rounds, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, listing
from alloykit.federation.contract import ServerState
from alloykit.training.snapshot_file import load, save
from alloykit.types import Checkpoint

SEPARATOR = "/"
NOTHING = "nothing"


def as_tensors(state: ServerState) -> dict[str, Tensor]:
    """The tensors of a state under one name each: "slot/name"."""
    return {
        f"{slot}{SEPARATOR}{name}": tensor
        for slot, tensors in state.tensors.items()
        for name, tensor in tensors.items()
    }


def of_tensors(round: int, numbers: Mapping[str, float], tensors: Mapping[str, Any]) -> ServerState:
    """The state of these tensors, as ``as_tensors`` names them.

    Example:
        >>> import torch
        >>> state = ServerState(2, {"clip": 0.5}, {"momentum": {"a/w": torch.ones(1)}})
        >>> of_tensors(2, {"clip": 0.5}, as_tensors(state)) == state
        True
    """
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition(SEPARATOR)
        slots.setdefault(slot, {})[name] = tensor
    return ServerState(round, dict(numbers), slots)


def save_state(state: ServerState, path: Path) -> None:
    """Write a state; the file has its name only when it is whole.

    Raises:
        CheckpointError: It cannot be written.
    """
    # The file format has no place for no tensors at all.
    tensors = as_tensors(state) or {NOTHING: torch.zeros(0)}
    save(path, {"round": state.round, "numbers": dict(state.numbers)}, tensors)


def load_state(path: Path) -> ServerState:
    """The state that ``save_state`` wrote.

    Raises:
        CheckpointError: The file cannot be read, is something else, or its bytes changed.
    """
    record, tensors = load(path)
    if set(record) != {"round", "numbers"}:
        raise CheckpointError(f"{path} does not hold what a server keeps between rounds.")
    tensors.pop(NOTHING, None)
    return of_tensors(int(record["round"]), record["numbers"], tensors)


def refuse_other_state(state: ServerState, server: Checkpoint) -> None:
    """Refuse a state that was kept for another model.

    Raises:
        CheckpointError: Tensors that the model does not have, or of other shapes; all are listed.
    """
    specs, wrong = server.specs(), []
    for slot, tensors in state.tensors.items():
        for name, tensor in tensors.items():
            shape = list(specs[name].shape) if name in specs else None
            if shape != list(tensor.shape):
                own = "not there" if shape is None else shape
                wrong.append(f"{shown(name)}   {slot}: {list(tensor.shape)}   the model: {own}")
    if wrong:
        raise CheckpointError(
            "What the server kept from the last round is of another model:\n"
            f"{listing(wrong)}\nGive the state of this model's last round, or none."
        )
