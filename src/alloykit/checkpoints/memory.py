"""Checkpoints in memory: a module, a state dict, or a list of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.element_types import SUPPORTED
from alloykit.checkpoints.file_checkpoint import checked_range, unknown_tensor
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec


class MemoryCheckpoint:
    """Named tensors that are already in memory.

    The tensors are kept as they are, not copied: do not change them while the checkpoint is used,
    and do not change what ``read`` returns. Names that share storage, position, shape and strides
    are tied: they get the same place.

    Args:
        tensors: Name -> tensor, on any device; read as CPU tensors without gradients.
        id: Its name; by default the digest of its content, computed when first asked for.
        metadata: Free text that goes with it.
        notes: What a reader should know of how it was made.

    Raises:
        CheckpointError: No tensors, or tensors that cannot be combined, all listed.

    Example:
        >>> w = torch.ones(2, 2)
        >>> specs = MemoryCheckpoint({"embed": w, "head": w}, "tied").specs()
        >>> specs["embed"].place == specs["head"].place
        True
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        id: str | None = None,
        metadata: Mapping[str, str] = MappingProxyType({}),
        notes: tuple[str, ...] = (),
    ) -> None:
        _check(tensors, id)
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._id = id
        self.metadata = metadata
        self.notes = notes
        self._specs = _specs(self._tensors)

    @cached_property
    def id(self) -> str:
        """Its given name, or the digest of its content."""
        return self._id if self._id is not None else content_digest(_Nameless(self))

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape, dtype, place."""
        return self._specs

    def read(self, name: str, *, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor of that name; with a range, the flat elements ``start`` to ``stop``."""
        if name not in self._tensors:
            raise unknown_tensor(name, self._id or "the checkpoint", list(self._tensors))
        tensor = self._tensors[name]
        begin, end = checked_range(name, self._specs[name], start, stop)
        if start or stop is not None:
            tensor = _elements(tensor, begin, end)
        return tensor.cpu().resolve_conj().resolve_neg()


class _Nameless:
    """A checkpoint as its own digest sees it, before it has an id."""

    id = ""

    def __init__(self, checkpoint: MemoryCheckpoint) -> None:
        self.specs = checkpoint.specs
        self.read = checkpoint.read
        self.metadata = checkpoint.metadata


def from_module(module: nn.Module, id: str | None = None) -> MemoryCheckpoint:
    """The parameters and persistent buffers of a module, as they are now, without a copy."""
    state = module.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    other = [shown(name) for name in state if name not in tensors]
    notes = (f"not a tensor, left out: {', '.join(other)}",) if other else ()
    return MemoryCheckpoint(tensors, id, notes=notes)


def from_mapping(state: Mapping[str, Any], id: str | None = None) -> MemoryCheckpoint:
    """A state dict of tensors or NumPy arrays."""
    wrong = [f"{shown(k)}: the name is not text" for k in state if not isinstance(k, str)]
    tensors = {}
    for name, value in state.items():
        try:
            tensors[name] = as_tensor(value)
        except TypeError as error:
            wrong.append(f"{shown(name)}: {error}")
    if wrong:
        raise CheckpointError(
            f"{_title(id)} is not a dictionary of named tensors:\n{listing(wrong)}\n"
            "Give a state dict: model.state_dict()."
        )
    return MemoryCheckpoint(tensors, id)


def from_sequence(arrays: Sequence[Any], id: str | None = None) -> MemoryCheckpoint:
    """A list of arrays or tensors, named by their position: "0", "1", ..."""
    return from_mapping({str(position): array for position, array in enumerate(arrays)}, id)


def as_tensor(value: Any) -> Tensor:
    """A tensor from a tensor or a NumPy array, without a copy where that is possible.

    Raises:
        TypeError: It is neither, or holds elements that torch has no type for.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray | np.generic):
        hint = "; give that dictionary itself" if isinstance(value, Mapping) else ""
        raise TypeError(f"it is a {type(value).__name__}, not a tensor{hint}")
    array = np.asarray(value)
    # Asking for the kind first: NumPy makes up the name anew each time, slowly.
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        return as_tensor(array.view(np.uint16)).view(torch.bfloat16)
    if array.dtype.kind not in "fciub":
        raise TypeError(f"it is a NumPy array of {array.dtype}, not of numbers")
    if not (array.flags.writeable and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    try:
        whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        return torch.from_numpy(whole)
    except TypeError:
        raise TypeError(f"it is a NumPy array of {array.dtype}, which torch lacks") from None


def _title(id: str | None) -> str:
    return f"Checkpoint {shown(id)}" if id else "The checkpoint"


def _check(tensors: Mapping[str, Tensor], id: str | None) -> None:
    if not tensors:
        raise CheckpointError(f"{_title(id)} holds no tensors.")
    wrong = [f"{shown(name)}: {why}" for name, t in tensors.items() if (why := _complaint(t))]
    if wrong:
        raise CheckpointError(
            f"{_title(id)} cannot be used: {counted(len(wrong), 'tensor')} cannot be combined:\n"
            f"{listing(wrong)}\nConvert to dense tensors with values first."
        )


def _complaint(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "it is a nested tensor"
    if tensor.is_quantized:
        return "it is quantised; dequantise it"
    if tensor.layout != torch.strided:
        return f"it is sparse ({tensor.layout}); make it dense with to_dense()"
    if tensor.device.type == "meta":
        return "it holds no values (meta device)"
    if tensor.dtype not in SUPPORTED:
        return f"its dtype {tensor.dtype} is not supported"
    return None


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    first: dict[tuple[Any, ...], str] = {}
    specs = {}
    for name, tensor in tensors.items():
        # The first name with that view stands for it: addresses differ from run to run.
        place = first.setdefault(_view_of(tensor), name) if tensor.numel() else name
        specs[name] = TensorSpec(tuple(tensor.shape), tensor.dtype, place)
    return specs


def _view_of(tensor: Tensor) -> tuple[Any, ...]:
    flags = (tensor.is_conj(), tensor.is_neg(), tensor.device, tensor.dtype)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), *flags


def _elements(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Flat elements; of a tensor that is not contiguous only the rows that hold them move."""
    if start == stop:
        return tensor.new_empty(0)
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor.numel() // tensor.shape[0]
    first, last = start // row, -(-stop // row)
    return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]
