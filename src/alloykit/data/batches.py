"""One batch: its inputs and targets as tensors, its rows, its place on a device, its digests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import DataError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is called with: a tensor, positional tensors, or keyword tensors."""

Batch: TypeAlias = tuple[Inputs, Tensor]
"""Inputs and targets of the same examples, in the same order."""

TARGET_KEYS = ("labels", "label", "targets", "target")
"""Where a batch that is a mapping keeps its targets; the first one present counts."""


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor of these numbers; shares memory with a tensor or a plain array.

    Args:
        values: A tensor, an array, or (nested) lists of numbers or of tensors.
        what: What it is, for the error ("inputs of validation").

    Raises:
        DataError: It holds something that is not a number, or rows of unequal lengths.
    """
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and values and all(isinstance(v, Tensor) for v in values):
        shapes = {tuple(v.shape) for v in values}
        if len(shapes) > 1:
            raise DataError(f"The {what} differ in shape: {sorted(shapes)[:3]}. Pad or resize.")
        return torch.stack([v.detach() for v in values])
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"The {what} are not rows of equal length: {error}.") from error
    if array.dtype.kind not in "biufc":
        raise DataError(
            f"The {what} hold {array.dtype} values, and a model takes numbers. "
            "Turn text into token numbers and categories into class numbers first."
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # A read-only array would make torch warn, since a tensor cannot be read-only.
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def as_inputs(values: Any, what: str) -> Inputs:
    """Tensors of one batch or split: a tuple stays a tuple, a mapping becomes a dict."""
    if isinstance(values, Mapping):
        return {str(key): as_tensor(value, f"{what}[{key!r}]") for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(as_tensor(value, f"{what}[{i}]") for i, value in enumerate(values))
    return as_tensor(values, what)


def as_targets(values: Any, what: str) -> Tensor:
    """Targets as int64 (whole numbers, booleans) or as the floating type that was given."""
    targets = as_tensor(values, what)
    if targets.is_complex():
        raise DataError(f"The {what} are complex numbers. Give class numbers or real values.")
    return targets if targets.is_floating_point() else targets.long()


def as_batch(batch: Any, where: str) -> Batch:
    """Inputs and targets of whatever a loader yields.

    Args:
        batch: A pair (inputs, targets), or a mapping with one of the keys of ``TARGET_KEYS``.
        where: Which batch it is, for the error.

    Raises:
        DataError: It is neither, or inputs and targets differ in length.
    """
    pair: tuple[Any, Any]
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is None:
            raise DataError(
                f"{where} is a mapping with the keys {', '.join(map(str, batch))}, "
                f"and none of them is a target. Name the targets one of {', '.join(TARGET_KEYS)}."
            )
        pair = ({name: value for name, value in batch.items() if name != key}, batch[key])
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        pair = (tuple(batch[0]) if isinstance(batch[0], list) else batch[0], batch[1])
    else:
        found = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise DataError(
            f"{where} is not a pair (inputs, targets): it has {found}. A model with several "
            "inputs takes ((first, second), targets) or a mapping with the key 'labels'."
        )
    named = pair[0].items() if isinstance(pair[0], Mapping) else ()
    for name, values in (*named, ("targets", pair[1])):
        _refuse_list(values, f"{name!r} of {where}")
    inputs, targets = as_inputs(pair[0], f"inputs of {where}"), as_targets(pair[1], where)
    check_lengths(inputs, targets, where)
    return inputs, targets


def _refuse_list(values: Any, what: str) -> None:
    """Lists of rows in a batch: torch's default collation makes them of the columns."""
    if isinstance(values, list | tuple) and any(
        isinstance(v, Tensor) and v.dim() > 0 for v in values
    ):
        raise DataError(
            f"{what} is a list of tensors, and whether its examples or its positions come first "
            "cannot be told. Give tensors: the dataset's torch format, or a collate_fn that stacks."
        )


def check_lengths(inputs: Inputs, targets: Tensor, where: str) -> None:
    """Refuse tensors without a batch dimension or of unequal lengths."""
    tensors = [*parts(inputs), targets]
    if not parts(inputs):
        raise DataError(f"{where} has no inputs.")
    if any(tensor.dim() == 0 for tensor in tensors):
        raise DataError(
            f"{where} is one example and not a batch: a tensor has no batch dimension. "
            "Give a Dataset for single examples, or batches with the example as first dimension."
        )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        *given, last = lengths
        raise DataError(
            f"{where} has {' and '.join(map(str, given))} inputs but {last} targets. "
            "Every example needs exactly one target."
        )


def parts(inputs: Inputs) -> list[Tensor]:
    """The tensors of the inputs, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def transform(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same inputs with ``change`` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(change(tensor) for tensor in inputs)


def length(inputs: Inputs) -> int:
    """Number of examples."""
    return len(parts(inputs)[0])


def placed(inputs: Inputs, model: torch.nn.Module) -> Inputs:
    """Inputs where the model is: on its device, real numbers in its floating dtype.

    Arrays of NumPy are float64 as a rule and models float32, so the cast is what callers mean.
    """
    # As a rule the first tensor tells both; a large model has thousands, and this is per batch.
    tensors = chain(model.parameters(), model.buffers())
    first = next(tensors, None)
    device = torch.device("cpu") if first is None else first.device
    seen = () if first is None else (first,)
    dtype = next((t.dtype for t in chain(seen, tensors) if t.is_floating_point()), None)

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return transform(inputs, place)


def forward(model: torch.nn.Module, inputs: Inputs) -> Any:
    """Call the model: a tuple as positional arguments, a dict as keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def digests(inputs: Inputs) -> list[bytes]:
    """One digest per example, of the dtype, shape and bytes of all its input tensors.

    Example:
        >>> first, second = digests(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
        >>> first == second
        True
    """
    named = inputs if isinstance(inputs, dict) else dict(enumerate(parts(inputs)))
    rows = [(_header(name, tensor), _row_bytes(tensor)) for name, tensor in named.items()]
    return [_digest(rows, example) for example in range(length(inputs))]


def _header(name: object, tensor: Tensor) -> bytes:
    return f"{name}\0{tensor.dtype}\0{tuple(tensor.shape[1:])}\0".encode()


def _row_bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The bytes of every example, [example, bytes]."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg()
    flat = flat.reshape(len(tensor), math.prod(tensor.shape[1:])).contiguous()
    width = flat.shape[1] * flat.element_size()
    return flat.flatten().view(torch.uint8).numpy().reshape(len(tensor), width)


def _digest(rows: list[tuple[bytes, np.ndarray[Any, Any]]], example: int) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for header, data in rows:
        state.update(header)
        state.update(data[example])
    return state.digest()


def in_slices(inputs: Inputs, targets: Tensor, size: int) -> Iterator[Batch]:
    """Consecutive batches of ``size`` examples of a whole split in memory; the last is shorter."""
    for start in range(0, len(targets), size):
        yield _slice(inputs, start, start + size), targets[start : start + size]


def _slice(inputs: Inputs, start: int, stop: int) -> Inputs:
    return transform(inputs, lambda tensor: tensor[start:stop])
