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


def room(
    shape: Sequence[int], memory_limit: int = MEMORY_LIMIT, dtype: torch.dtype = torch.float32
) -> Tensor:
    """An uninitialised tensor; a temporary memory-mapped file above the limit.

    The file is removed when the tensor is no longer used, at the latest when Python ends.

    Args:
        shape: Its dimensions.
        memory_limit: Bytes, at least 0.
        dtype: Its element type.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= memory_limit:
        return torch.empty(tuple(shape), dtype=dtype)
    handle, path = tempfile.mkstemp(prefix="alloykit-", suffix=".npy")
    os.close(handle)
    # Bytes, because NumPy lacks some of torch's element types (bfloat16).
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(nbytes,))
    weakref.finalize(array, _remove, Path(path))
    return torch.from_numpy(array).view(dtype).reshape(tuple(shape))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
