"""Inputs as models want them: channels first, scaled, centred, shaped and typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alloykit.data.split_spec import SplitSpec
from alloykit.errors import DataError

CHANNELS = (1, 3, 4)
BYTE_SCALE = 1 / 255


def channels_first(inputs: NDArray[Any], shape: Sequence[int] | None = None) -> NDArray[Any]:
    """Images of bytes as [image, channel, height, width]; anything else unchanged.

    [image, height, width] gets one channel; [image, height, width, channel] is turned around where
    its last size is 1, 3 or 4 and its second is not.

    Args:
        inputs: Any array.
        shape: The shape asked for; images that already have it stay as they are.
    """
    if inputs.dtype != np.uint8 or (shape is not None and inputs.shape[1:] == tuple(shape)):
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[3] in CHANNELS and inputs.shape[1] not in CHANNELS:
        return inputs.transpose(0, 3, 1, 2)
    return inputs


def preparation(inputs: Tensor, spec: SplitSpec, name: str) -> Callable[[Tensor], Tensor]:
    """What turns a batch of raw inputs into what the model gets.

    Args:
        inputs: All raw inputs: their dtype and shape decide what is needed.
        spec: ``scale``, ``mean``, ``std``, ``shape`` and ``dtype``.
        name: The split, for errors.

    Raises:
        DataError: ``mean``, ``std`` or ``shape`` do not fit the inputs.
    """
    images = inputs.dtype == torch.uint8 and inputs.dim() >= 3
    scale = spec.scale if spec.scale is not None else (BYTE_SCALE if images else 1.0)
    mean, std = (_along_channels(inputs, spec, key, name) for key in ("mean", "std"))
    _check_shape(inputs, spec.shape, name)
    changes = scale != 1.0 or mean is not None or std is not None
    dtype = getattr(torch, spec.dtype) if spec.dtype else _usual_dtype(inputs.dtype, changes)

    def prepare(batch: Tensor) -> Tensor:
        if changes:
            batch = batch.to(torch.float64 if dtype == torch.float64 else torch.float32)
            batch = batch * scale
            batch = batch if mean is None else batch - mean.to(batch.dtype)
            batch = batch if std is None else batch / std.to(batch.dtype)
        batch = batch.to(dtype)
        return batch if spec.shape is None else batch.reshape(len(batch), *spec.shape)

    return prepare


def _usual_dtype(given: torch.dtype, changes: bool) -> torch.dtype:
    """Float32; whole numbers that nothing was done to stay, since they may be token numbers."""
    number = given.is_floating_point or given in (torch.uint8, torch.bool)
    return torch.float32 if changes or number else torch.int64


def _along_channels(inputs: Tensor, spec: SplitSpec, key: str, name: str) -> Tensor | None:
    value = getattr(spec, key)
    if value is None:
        return None
    numbers = torch.tensor(value, dtype=torch.float64)
    if numbers.dim() == 0 or numbers.numel() == 1:
        return numbers.reshape(())
    channels = inputs.shape[1] if inputs.dim() > 1 else 1
    if len(numbers) != channels:
        raise DataError(
            f"{name}: {key} has {len(numbers)} numbers, and the inputs {list(inputs.shape)} have "
            f"{channels} channels or columns. Give one number, or {channels}."
        )
    return numbers.reshape(-1, *[1] * (inputs.dim() - 2))


def _check_shape(inputs: Tensor, shape: Sequence[int] | None, name: str) -> None:
    one = list(inputs.shape[1:])
    if shape is not None and math.prod(shape) != math.prod(one):
        raise DataError(
            f"{name}: shape {list(shape)} has {math.prod(shape)} numbers, and one example {one} "
            f"has {math.prod(one)}."
        )
