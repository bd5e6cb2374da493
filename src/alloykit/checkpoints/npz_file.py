"""NumPy's .npz archives, packed or not, read array by array; object arrays are never unpickled."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy

from alloykit.checkpoints.element_types import NUMPY
from alloykit.checkpoints.file_checkpoint import FileCheckpoint, Record
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.wording import counted, shown
from alloykit.checkpoints.zip_container import Entry, open_zip
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec

LONGEST_HEADER = 12_000
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_npz(file: SourceFile, id: str) -> FileCheckpoint:
    """Open a .npz file; arrays stay on disk, and packed, until they are asked for.

    NumPy has no bfloat16: arrays of it come out of ``numpy.savez`` as raw bytes and are refused.

    Args:
        file: The open file.
        id: What the checkpoint is called.

    Raises:
        CheckpointError: The archive is damaged, or arrays are not plain numbers, all listed.
    """
    wrong = []
    records = {}
    for name, entry in open_zip(file, compressed=True).items():
        try:
            records[name.removesuffix(".npy")] = _record(name, entry)
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            wrong.append(f"{shown(name)}: {error}")
    if wrong:
        raise CheckpointError(
            f"{file.name}: {counted(len(wrong), 'array')} cannot be used:\n{listing(wrong)}\n"
            "Save plain arrays of numbers with numpy.savez."
        )
    if not records:
        raise CheckpointError(f"{file.name} holds no arrays.")
    return FileCheckpoint(id, records)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype[np.generic]
    length: int


def _record(name: str, entry: Entry) -> Record:
    if not name.endswith(".npy"):
        raise ValueError("it is not an array")
    header = _header(entry)
    dtype = NUMPY.get(f"{header.dtype.kind}{header.dtype.itemsize}")
    if dtype is None:
        raise ValueError(f"its elements are {_described(header.dtype)}")
    numel = math.prod(header.shape)
    if header.length + numel * dtype.itemsize != entry.size:
        raise ValueError(
            f"{header.dtype} {list(header.shape)} takes {numel * dtype.itemsize} bytes, and "
            f"there are {entry.size - header.length}"
        )
    spec = TensorSpec(header.shape, dtype, name)
    strides = _column_strides(header.shape) if header.columns_first else None
    swapped = header.dtype.byteorder == ">"
    return Record(spec, entry.region, header.length, strides, swapped)


def _header(entry: Entry) -> _Header:
    # What is damaged here is noticed, too, when the first numbers are read.
    head = entry.region.peek(0, min(entry.size, LONGEST_HEADER)).numpy().tobytes()
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    if version not in READERS:
        raise ValueError(f"its .npy version {version} is for structured arrays")
    try:
        shape, columns_first, dtype = READERS[version](stream)
    except Exception as error:
        # NumPy lets through what Python's own parser says to odd headers.
        raise ValueError(f"its .npy header cannot be read: {error}") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape {shown(list(shape))} has negative sizes")
    return _Header(shape, columns_first and len(shape) > 1, dtype, stream.tell())


def _described(dtype: np.dtype[np.generic]) -> str:
    if dtype.hasobject:
        return "Python objects, which only a pickle can hold"
    if dtype.kind == "V":
        return f"raw bytes ({shown(str(dtype))}); bfloat16 must be saved as .safetensors"
    return f"{shown(str(dtype))}, not numbers that torch has"


def _column_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
