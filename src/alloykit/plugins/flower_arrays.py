"""Tensors in Flower's records: every dtype that alloykit reads, tied tensors sent once."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from numpy.lib import format as npy
from torch import Tensor, nn

from alloykit.checkpoints.element_types import NUMPY
from alloykit.checkpoints.memory import from_mapping, from_module
from alloykit.checkpoints.npz_file import LONGEST_HEADER, READERS
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.plugins.flower_api import Array, ArrayRecord
from alloykit.types import TensorSpec

STORED = str(Array(torch.zeros(0).numpy()).stype)
"""Flower's own serialisation: a .npy file."""

BITS = "alloykit.bits"
"""Serialisation of elements that NumPy has no type for: unsigned integers of the same bits."""

SAME = "alloykit.same"
"""Serialisation of a tied tensor: the name of the array that it is."""

BIT_TYPES = MappingProxyType(
    {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.float8_e4m3fnuz,
            torch.float8_e5m2fnuz,
            torch.float8_e8m0fnu,
        )
    }
)
"""Name in a record -> dtype that NumPy has no type for."""

UNSIGNED = MappingProxyType({1: torch.uint8, 2: torch.uint16})
WIDEST = 8
"""Bytes of one real number that is taken for one of the server's, whatever its precision."""


def to_arrays(tensors: Mapping[str, Tensor] | nn.Module) -> ArrayRecord:
    """Put a state dict into one of Flower's records.

    What NumPy has a type for is stored as Flower stores it, so that ``to_torch_state_dict`` reads
    it, too. bfloat16 and float8, which Flower refuses, are stored as their bits, and a tied tensor
    as the name of the first one; only ``from_arrays`` reads those, and Flower's own functions say
    that they cannot.

    Use it on both sides: for the initial model of a server, and for what a client sends.

    Args:
        tensors: A state dict, or a module; on any device, left as it is.

    Raises:
        CheckpointError: No tensors, or values that are no dense tensors of numbers; all are listed.

    Example:
        >>> w = torch.ones(2, dtype=torch.bfloat16)
        >>> record = to_arrays({"embed": w, "head": w})
        >>> record["embed"].dtype, record["head"].data
        ('bfloat16', b'embed')
    """
    source = from_module(tensors) if isinstance(tensors, nn.Module) else from_mapping(tensors)
    record = ArrayRecord()
    first: dict[str, str] = {}
    for name, spec in source.specs().items():
        before = first.setdefault(spec.place, name)
        if before == name:
            record[name] = _packed(source.read(name))
        else:
            whole = record[before]
            record[name] = Array(
                dtype=whole.dtype, shape=whole.shape, stype=SAME, data=before.encode()
            )
    return record


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """Take a state dict out of one of Flower's records.

    Tied tensors come out as one tensor under several names. ``load_state_dict`` takes the result.

    Args:
        record: What ``to_arrays`` made, or Flower's ``ArrayRecord(state_dict)``.

    Raises:
        CheckpointError: Arrays that are damaged, or no numbers that torch has; all are listed.

    Example:
        >>> from_arrays(to_arrays({"w": torch.tensor([0.5, 1.5], dtype=torch.bfloat16)}))
        {'w': tensor([0.5000, 1.5000], dtype=torch.bfloat16)}
    """
    views, wrong = read_arrays(record)
    if wrong:
        raise CheckpointError(
            f"{counted(len(wrong), 'array')} of the record cannot be used:\n{listing(wrong)}\n"
            "Send state dicts as to_arrays(model.state_dict())."
        )
    copies = {id(view): view.clone() for view in views.values()}
    return {name: copies[id(view)] for name, view in views.items()}


def read_arrays(
    record: ArrayRecord, server: Mapping[str, TensorSpec] = MappingProxyType({})
) -> tuple[dict[str, Tensor], list[str]]:
    """Views of a record's arrays, and what is wrong with the others.

    Nothing is copied, and no size that a record claims is believed: an array is refused where its
    payload is larger than the server's tensor, or does not have the bytes that its header says.

    Args:
        record: From a client, who may have put anything into it.
        server: The server's tensors.

    Returns:
        Name -> tensor that must not be changed, and one line for each array that is wrong.
    """
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    with warnings.catch_warnings():
        # Bytes cannot be written to, and nobody does.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        for name in [name for name, array in record.items() if array.stype != SAME]:
            try:
                _refuse_size(record[name], server.get(name))
                found[name] = _unpacked(record[name])
            except (ValueError, TypeError, RuntimeError) as error:
                wrong.append(f"{shown(name)}: {error}")
    for name in [name for name, array in record.items() if array.stype == SAME]:
        whole = record[name].data[: 4 * LONGEST_HEADER].decode(errors="replace")
        if whole in found:
            found[name] = found[whole]
        else:
            wrong.append(f"{shown(name)}: it is tied to {shown(whole)}, which is no array here")
    return {name: found[name] for name in record if name in found}, wrong


def _packed(tensor: Tensor) -> Array:
    whole = tensor.detach().contiguous()
    name = str(whole.dtype).removeprefix("torch.")
    if name not in BIT_TYPES:
        return Array(whole.numpy())
    bits = Array(whole.view(UNSIGNED[whole.dtype.itemsize]).numpy())
    return Array(dtype=name, shape=tuple(whole.shape), stype=BITS, data=bits.data)


def _refuse_size(array: Array, spec: TensorSpec | None) -> None:
    if spec is None:
        return
    pairs = 2 if spec.dtype.is_complex else 1
    most = spec.numel * max(spec.dtype.itemsize, WIDEST * pairs) + LONGEST_HEADER
    if len(array.data) > most:
        raise ValueError(
            f"it has {len(array.data):,} bytes, and the server's tensor takes {spec.nbytes:,}"
        )


def _unpacked(array: Array) -> Tensor:
    header = _header(bytes(array.data[:LONGEST_HEADER]))
    stored, shape = header.stored, header.shape
    if stored is None:
        raise ValueError(f"its elements are {header.kind}, not numbers that torch has")
    dtype = _meant(array, stored, header.kind)
    if tuple(array.shape) != shape:
        raise ValueError(f"it says {list(array.shape)} and its header says {list(shape)}")
    there = len(array.data) - header.length
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{list(shape)} of {header.kind} does not fill its {there:,} bytes")
    flat = _view(array.data, header.length, dtype)
    if header.columns_first and len(shape) > 1:
        backwards = tuple(reversed(range(len(shape))))
        return flat.reshape(shape[::-1]).permute(backwards).contiguous()
    return flat.reshape(shape)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    columns_first: bool
    kind: str
    stored: torch.dtype | None
    length: int


def _header(head: bytes) -> _Header:
    """What the first bytes of an array say of it."""
    # Versions 1 and 2 differ in how many bytes the length of the header takes.
    width = 2 if head[6:7] == b"\x01" else 4
    start = 8 + width
    return _parsed(head[: start + int.from_bytes(head[8:start], "little")])


@lru_cache(maxsize=4096)
def _parsed(head: bytes) -> _Header:
    """The header itself: of one tensor it is the same from every client, and slow to read."""
    stream = io.BytesIO(head)
    try:
        version = npy.read_magic(stream)
        if version not in READERS:
            raise ValueError(f"its .npy version {version} is for structured arrays")
        shape, columns_first, kind = READERS[version](stream)
    except Exception as error:
        # NumPy lets through what Python's own parser says to odd headers.
        raise ValueError(f"its .npy header cannot be read: {error}") from error
    known = None if kind.byteorder == ">" else NUMPY.get(f"{kind.kind}{kind.itemsize}")
    return _Header(shape, columns_first, shown(str(kind)), known, stream.tell())


def _meant(array: Array, stored: torch.dtype, kind: str) -> torch.dtype:
    """The dtype that a record names, where what it stores can be that."""
    if array.stype == BITS:
        meant = BIT_TYPES.get(array.dtype)
        if meant is None or stored is not UNSIGNED[meant.itemsize]:
            raise ValueError(f"it says {shown(array.dtype)} and holds {kind}")
        return meant
    if array.stype != STORED:
        raise ValueError(f"its serialisation {shown(array.stype)} is not known")
    if array.dtype != kind:
        raise ValueError(f"it says {shown(array.dtype)} and holds {kind}")
    return stored


def _view(data: bytes, start: int, dtype: torch.dtype) -> Tensor:
    if start == len(data):
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:
        # Any byte may come; only 0 and 1 are values of torch.bool.
        return _view(data, start, torch.uint8) != 0
    if start % dtype.itemsize:
        data, start = data[start:], 0
    return torch.frombuffer(data, dtype=dtype, offset=start)
