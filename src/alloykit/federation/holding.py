"""Updates kept until a round ends: where they are, or copied to memory or a temporary file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.storage import room
from alloykit.errors import AlloyError
from alloykit.types import Checkpoint, TensorSpec

ALIGNMENT = 16
"""Bytes that tensors begin at a multiple of, so that any element type can be viewed there."""


def in_memory(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tensors lie in memory."""
    return isinstance(getattr(checkpoint, "inner", checkpoint), MemoryCheckpoint)


def size(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    """Bytes of these tensors."""
    specs = checkpoint.specs()
    return sum(specs[name].nbytes for name in _once(specs, names))


def copied(
    checkpoint: Checkpoint, names: Sequence[str], *, on_disk: bool = False
) -> MemoryCheckpoint:
    """A copy of these tensors, in memory or in a memory-mapped temporary file.

    A file goes when the copy does. Tied names stay tied.
    """
    specs = checkpoint.specs()
    starts, total = {}, 0
    for name in _once(specs, names):
        starts[specs[name].place] = total
        total += -(-specs[name].nbytes // ALIGNMENT) * ALIGNMENT
    place = room((max(total, 1),), 0 if on_disk else max(total, 1), torch.uint8)
    tensors: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for name in names:
        spec = specs[name]
        if spec.place not in made:
            start = starts[spec.place]
            raw = place[start : start + spec.nbytes]
            made[spec.place] = raw.view(spec.dtype).reshape(spec.shape)
            made[spec.place].copy_(checkpoint.read(name))
        tensors[name] = made[spec.place]
    return MemoryCheckpoint(tensors, checkpoint.id)


def unreadable(checkpoint: Checkpoint) -> str:
    """Why a tensor of a file cannot be read; "" where all can, or they lie in memory."""
    if in_memory(checkpoint):
        return ""
    try:
        for name in checkpoint.specs():
            checkpoint.read(name)
    except (AlloyError, OSError) as error:
        return in_one_line(error)
    return ""


def in_one_line(error: Exception) -> str:
    """The first line of an error's text, and of what it lists below."""
    first, _, rest = str(error).partition("\n")
    listed = rest.partition("\n")[0].strip()
    return f"{first} {listed}" if first.endswith(":") else first


def _once(specs: Mapping[str, TensorSpec], names: Sequence[str]) -> list[str]:
    """One name of each place."""
    return list({specs[name].place: name for name in reversed(names)}.values())
