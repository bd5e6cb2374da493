"""What a model costs to keep and to run, measured on one batch."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alloykit.data.batches import Inputs, forward, length, parts, placed
from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.predicting import evaluating
from alloykit.types import Costs

REPEATS = 10


def measure(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward_passes: int = 1,
    bytes_on_disk: int | None = None,
    repeats: int = REPEATS,
) -> Costs:
    """Parameters, bytes, peak memory and latency of one model on one batch.

    Latency is the shortest of ``repeats`` forward passes after one to warm up, per example: what
    slows a pass down is other work on the machine, as timeit's documentation says. It
    depends on the machine, its load and the batch size. Peak memory is the largest number of bytes
    of tensors alive at once: parameters, buffers, the batch and what the forward pass makes, which
    is what any allocator needs at least.

    Args:
        model: Run in evaluation mode, where it is.
        inputs: One batch.
        forward_passes: Members that run for one prediction; recorded, not measured.
        bytes_on_disk: Size of the file; None counts the bytes of all parameters and buffers.
        repeats: Timed forward passes, at least 1.

    Example:
        >>> measure(nn.Linear(3, 2), torch.zeros(4, 3)).parameters
        8
    """
    if repeats < 1:
        raise InvalidParameter(f"Latency needs at least 1 repeat. Got {repeats}.")
    if not length(inputs):
        raise DataError("Costs are measured on a batch of at least one example. Got none.")
    kept = tensors_of(model)
    with evaluating(model):
        given = placed(inputs, model)
        peak = peak_bytes(model, given)
        seconds = min(_seconds(model, given) for _ in range(repeats))
    size = sum(storage_bytes(kept).values())
    return Costs(
        parameters=sum(tensor.numel() for tensor in kept),
        bytes=size if bytes_on_disk is None else bytes_on_disk,
        peak_memory=peak,
        latency=seconds / length(inputs),
        forward_passes=forward_passes,
    )


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, tied ones once."""
    unique = {_identity(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return list(unique.values())


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by storage, so that views and ties count once."""
    return {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors
    }


def peak_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Largest number of bytes of tensors alive at once during one forward pass."""
    resident = [*tensors_of(model), *parts(inputs)]
    live = _LiveBytes(resident)
    with live:
        forward(model, inputs)
    return live.peak


def _seconds(model: nn.Module, inputs: Inputs) -> float:
    _wait(inputs)
    start = time.perf_counter()
    forward(model, inputs)
    _wait(inputs)
    return time.perf_counter() - start


def _wait(inputs: Inputs) -> None:
    """Until the device has finished: it works on after the call returns."""
    device = parts(inputs)[0].device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of all tensors that operations make, until they are freed."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = storage_bytes(resident)
        self.current: int = sum(self._sizes.values())
        self.peak: int = self.current

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.current -= self._sizes.pop(key, 0)
