"""What a pickle may mention: names that build records, and harmless names that stay inert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from alloykit.checkpoints.extents import MOST_DIMENSIONS, naturals


@dataclass(frozen=True)
class Global:
    """The full name of a class or function; nothing is looked up or imported.

    Attributes:
        name: "module.name" as the pickle spells it.
    """

    name: str


@dataclass(eq=False)
class Placeholder:
    """Stands for an object that was never made.

    Attributes:
        name: Full name of its class, or of the function that would have made it.
        state: What its attributes would have been set from.
    """

    name: str
    state: Any = None


# The records of tensors are not frozen: that makes them three times as slow to build.
@dataclass(slots=True)
class StoredElements:
    """A torch storage: its elements lie elsewhere in the file.

    Attributes:
        key: What the file calls it.
        dtype: Its element type; of untyped storages uint8.
        numel: Number of elements that the pickle claims.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(slots=True, eq=False)
class TensorView:
    """A tensor as a view of a storage.

    Attributes:
        storage: The storage.
        dtype: Element type.
        offset: Number of the first element within the storage.
        shape: Sizes.
        strides: Elements between neighbours, one per dimension.
    """

    storage: StoredElements
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unsupported:
    """A tensor of a sort that cannot be combined.

    Attributes:
        why: The sort, and what to do about it.
    """

    why: str


class MalformedPickleError(ValueError):
    """A pickle that torch.save does not write."""


Builder: TypeAlias = Callable[..., Any]


def dtype_of(name: str) -> torch.dtype | None:
    """The dtype that a name such as "torch.float16" stands for."""
    return _DTYPES.get(name)


def storage_dtype(name: str) -> torch.dtype | None:
    """The element type of a storage class such as "torch.FloatStorage"."""
    return _STORAGES.get(name) or _STORAGES.get(name.replace("torch.cuda.", "torch."))


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype) -> Any:
    if not isinstance(storage, StoredElements):
        raise MalformedPickleError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise MalformedPickleError("a tensor whose shape and strides are no tuples")
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise MalformedPickleError("a tensor whose shape and strides do not fit")
    if not naturals((offset, *shape, *strides)):
        raise MalformedPickleError("a tensor whose sizes are not natural numbers")
    return TensorView(storage, dtype, offset, shape, strides)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``: (..., requires_grad, hooks, flags)."""
    dtype = storage.dtype if isinstance(storage, StoredElements) else torch.uint8
    view = _view(storage, offset, shape, strides, dtype)
    return _flagged(view, rest[2]) if len(rest) > 2 else view


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *rest: Any,
) -> Any:
    found = dtype_of(dtype.name) if isinstance(dtype, Global) else None
    if found is None:
        raise MalformedPickleError("a tensor of unknown dtype")
    view = _view(storage, offset, shape, strides, found)
    return _flagged(view, rest[0]) if rest else view


def _flagged(view: Any, flags: Any) -> Any:
    if isinstance(flags, dict) and (flags.get("conj") or flags.get("neg")):
        return Unsupported("a conjugated or negated view; save tensor.resolve_conj().resolve_neg()")
    return view


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
    """``_rebuild_from_type_v2``: a tensor with attributes, or of a subclass."""
    plain = isinstance(kind, Global) and kind.name in _PLAIN_TENSORS
    builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
    if not plain or builder is None or not isinstance(arguments, tuple):
        return Unsupported("a tensor subclass; save a plain tensor")
    return builder(*arguments)


def _unsupported(why: str) -> Builder:
    return lambda *_: Unsupported(why)


def new_mapping(*arguments: Any) -> Any:
    """A dictionary from nothing, from pairs, or with a default that is left out."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise MalformedPickleError("a dictionary of things that are not pairs")
    return {key: value for key, value in pairs if isinstance(key, str | int)}


def _size(*arguments: Any) -> Any:
    """``torch.Size`` of a tuple of sizes: that tuple."""
    sizes = arguments[0] if len(arguments) == 1 else None
    usable = isinstance(sizes, tuple) and len(sizes) <= MOST_DIMENSIONS and naturals(sizes)
    return sizes if usable else Placeholder("torch.Size")


_PLAIN_TENSORS = frozenset(
    {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"}
    | {"torch.nn.parameter.Buffer"}
)

_MAPPINGS = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)

_SPARSE = _unsupported("sparse; make it dense with to_dense()")
_DEVICE = _unsupported("stored for another device; save tensor.cpu()")

BUILDERS: Mapping[str, Builder] = {
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_sparse_csr_tensor": _SPARSE,
    "torch._utils._rebuild_nested_tensor": _unsupported("a nested tensor"),
    "torch._utils._rebuild_qtensor": _unsupported("quantised; dequantise it"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unsupported("without values (meta device)"),
    "torch._utils._rebuild_wrapper_subclass": _unsupported("a tensor subclass"),
    "torch._utils._rebuild_device_tensor_from_numpy": _DEVICE,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _DEVICE,
    **dict.fromkeys(_MAPPINGS, new_mapping),
}
"""Names that build a record when called, and the function of ours that builds it."""

_INERT_NAMES = {
    "argparse": "Namespace",
    "builtins": "bool bytearray complex dict float frozenset int list object range set slice str",
    "collections": "Counter deque",
    "datetime": "date datetime timedelta",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "_codecs": "encode",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "torch": "Tensor device layout per_channel_affine per_tensor_affine",
    "torch._tensor": "Tensor",
    "torch.nn.parameter": "Buffer Parameter",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
    # The index of a torch distributed checkpoint; what it says is in the placeholders' state.
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta "
        "TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING"
    ),
}

INERT = frozenset(f"{module}.{n}" for module, names in _INERT_NAMES.items() for n in names.split())
"""Bookkeeping that real checkpoints carry: allowed, never made, of no use to us."""

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.QInt8Storage": torch.qint8,
    "torch.QUInt8Storage": torch.quint8,
    "torch.QInt32Storage": torch.qint32,
    "torch.storage.UntypedStorage": torch.uint8,
}


def is_known(name: str) -> bool:
    """Whether a pickle may mention that name without being refused."""
    known = name in BUILDERS or name in INERT or dtype_of(name) is not None
    return known or storage_dtype(name) is not None or name.startswith("numpy.dtypes.")
