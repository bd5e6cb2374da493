"""Checkpoint -> state dict, and state dict -> module, with everything that is wrong listed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alloykit.checkpoints.wording import counted
from alloykit.errors import CheckpointError, listing
from alloykit.names import wrapper_prefix
from alloykit.types import Checkpoint


def state_dict(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint in memory; tied names share one tensor."""
    read: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    state = {}
    for name, spec in checkpoint.specs().items():
        key = (spec.place, spec.shape)
        if key not in read:
            read[key] = checkpoint.read(name)
        state[name] = read[key]
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a module of the same architecture; tied names may be given once.

    A module in a wrapper (DistributedDataParallel, torch.compile) takes the names of the module
    inside, too. Values are rounded to the module's dtypes.

    Raises:
        CheckpointError: Names or shapes that do not fit the module; all are listed.
    """
    own = _own_tensors(module, state)
    places = {n: (t.data_ptr(), t.shape, t.stride()) if t.numel() else n for n, t in own.items()}
    given = {places[name] for name in state if name in own}
    wrong = [
        f"{name}   the model has it, the checkpoint does not"
        for name in own
        if name not in state and places[name] not in given
    ]
    wrong += [f"{n}   the checkpoint has it, the model does not" for n in state if n not in own]
    wrong += [
        f"{name}   model: {list(own[name].shape)}   checkpoint: {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    wrong += [
        f"{name}   model: {own[name].dtype}   checkpoint: {tensor.dtype}"
        for name, tensor in state.items()
        if name in own and tensor.is_complex() and not own[name].is_complex()
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint does not fit {type(module).__name__}: "
            f"{counted(len(wrong), 'difference')}.\n{listing(wrong)}\n"
            "Check the architecture, and its arguments, that builds the model."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _own_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}
    prefix = wrapper_prefix(own)
    if prefix and not any(name in own for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return own
