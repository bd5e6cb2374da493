"""Updates kept until a round ends: where they are, or copied to a temporary file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.storage import room
from alloykit.types import Checkpoint

ALIGNMENT = 16
"""Bytes that tensors begin at a multiple of, so that any element type can be viewed there."""


def in_memory(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tensors lie in memory."""
    return isinstance(getattr(checkpoint, "inner", checkpoint), MemoryCheckpoint)


def size(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    """Bytes of these tensors."""
    specs = checkpoint.specs()
    return sum(specs[name].nbytes for name in names)


def on_disk(checkpoint: Checkpoint, names: Sequence[str]) -> MemoryCheckpoint:
    """A copy of these tensors in a memory-mapped temporary file, which goes when it does."""
    specs = checkpoint.specs()
    starts, total = {}, 0
    for name in names:
        starts[name] = total
        total += -(-specs[name].nbytes // ALIGNMENT) * ALIGNMENT
    place = room((max(total, 1),), 0, torch.uint8)
    tensors: dict[str, Tensor] = {}
    for name in names:
        spec = specs[name]
        raw = place[starts[name] : starts[name] + spec.nbytes]
        tensors[name] = raw.view(spec.dtype).reshape(spec.shape)
        tensors[name].copy_(checkpoint.read(name))
    return MemoryCheckpoint(tensors, checkpoint.id)
