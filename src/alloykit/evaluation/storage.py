"""Room for outputs: in memory, or memory-mapped in a temporary file when they are large."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MEMORY_LIMIT = 1 << 30
"""Bytes of outputs that are kept in memory; larger ones go to a temporary file."""


def room(shape: Sequence[int], memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """An uninitialised float32 tensor; a temporary memory-mapped file above the limit.

    The file is removed when the tensor is no longer used, at the latest when Python ends.

    Args:
        shape: Its dimensions.
        memory_limit: Bytes, at least 0.
    """
    if math.prod(shape) * torch.float32.itemsize <= memory_limit:
        return torch.empty(*shape)
    handle, path = tempfile.mkstemp(prefix="alloykit-", suffix=".npy")
    os.close(handle)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=tuple(shape))
    weakref.finalize(array, _remove, Path(path))
    return torch.from_numpy(array)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
