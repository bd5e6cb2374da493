"""A checkpoint whose tensors lie in files: each read fetches the bytes asked for and no others."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, InvalidParameter, UnknownName, did_you_mean
from alloykit.types import Checkpoint, TensorSpec

_MAKING = threading.Lock()


class Region(Protocol):
    """A run of bytes that tensors lie in."""

    file: SourceFile

    def read(self, start: int, stop: int) -> Tensor:
        """Bytes ``start`` to ``stop`` of the region, as a fresh uint8 tensor."""


class FileRegion:
    """Bytes that lie in a file as they are.

    Args:
        file: The file.
        start: Its first byte there.
        length: Number of bytes.
        crc: Their CRC-32 where the file states one; checked once, before the first bytes leave.
        name: What the container calls it, for messages.
    """

    def __init__(
        self, file: SourceFile, start: int, length: int, *, crc: int | None = None, name: str = ""
    ) -> None:
        self.file = file
        self.start = start
        self.length = length
        self._crc = crc
        self._name = name
        # Made when it is needed: a file may have 100,000 regions.
        self._checking: threading.Lock | None = None

    def read(self, start: int, stop: int) -> Tensor:
        """Bytes ``start`` to ``stop`` of the region, as a fresh uint8 tensor."""
        if self._crc is None or stop - start == self.length:
            data = self.file.read_tensor(self.start + start, self.start + stop)
            self._check_crc(lambda: zlib.crc32(data.numpy().data))
            return data
        with self._lock():
            self._check_crc(lambda: self.file.crc32(self.start, self.start + self.length))
        return self.file.read_tensor(self.start + start, self.start + stop)

    def peek(self, start: int, stop: int) -> Tensor:
        """The same before their CRC-32 was compared, which takes reading all of them."""
        return self.file.read_tensor(self.start + start, self.start + stop)

    @property
    def checked(self) -> bool:
        """Whether the bytes must still be compared with their CRC-32 before they are used."""
        return self._crc is not None

    def _lock(self) -> threading.Lock:
        with _MAKING:
            self._checking = self._checking or threading.Lock()
        return self._checking

    def _check_crc(self, crc32: Callable[[], int]) -> None:
        if self._crc is not None and crc32() != self._crc:
            self.file.fail(
                f"is damaged: the bytes of {shown(self._name)} do not match their CRC-32. "
                "Copy or download it again."
            )
        self._crc = None


class Extent(NamedTuple):
    """Where the elements of a tensor lie in a file one after the other, ready to be used.

    Attributes:
        file: The file.
        offset: First byte of element 0 there.
    """

    file: SourceFile
    offset: int


class Record(NamedTuple):
    """Where one tensor lies and how its bytes are to be read.

    Attributes:
        spec: Its shape, dtype and place.
        region: The bytes that it lies in.
        offset: First byte of element 0 within the region.
        strides: Elements between neighbours in each dimension; None where it is contiguous.
        swapped: Whether its elements are big-endian.
    """

    spec: TensorSpec
    region: Region
    offset: int
    strides: tuple[int, ...] | None = None
    swapped: bool = False

    def read(self, start: int, stop: int) -> Tensor:
        """The flat elements ``start`` to ``stop``."""
        if start == stop:
            return torch.empty(0, dtype=self.spec.dtype)
        if self.strides is None:
            return self._elements(start, stop)
        shape = self.spec.shape
        row = self.spec.numel // shape[0]
        first, last = start // row, -(-stop // row)
        extents = [
            (size - 1) * step for size, step in zip(shape[1:], self.strides[1:], strict=True)
        ]
        begin = first * self.strides[0]
        end = (last - 1) * self.strides[0] + sum(extents) + 1
        rows = self._elements(begin, end).as_strided((last - first, *shape[1:]), self.strides)
        return rows.reshape(-1)[start - first * row : stop - first * row].clone()

    def extent(self) -> Extent | None:
        """Where its bytes can be read as they are; None where they must be looked at or turned."""
        region = self.region
        if self.strides or self.swapped or not isinstance(region, FileRegion) or region.checked:
            return None
        return Extent(region.file, region.start + self.offset)

    def _elements(self, start: int, stop: int) -> Tensor:
        size = self.spec.dtype.itemsize
        data = self.region.read(self.offset + start * size, self.offset + stop * size)
        if self.swapped:
            _swap_bytes(data.numpy(), self.spec.dtype)
        if self.spec.dtype == torch.bool and bool((data > 1).any()):
            raise ValueError("is boolean but holds bytes other than 0 and 1")
        return data.view(self.spec.dtype)


def _swap_bytes(data: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: torch.dtype) -> None:
    size = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    data.view(f"u{size}").byteswap(inplace=True)


@dataclass(frozen=True)
class FileCheckpoint:
    """Named tensors in one or several files.

    Attributes:
        id: Its given name, or the file's stem.
        records: Name -> where the tensor lies.
        metadata: Free text that the file carries.
        notes: What was ignored, restored or renamed on opening, in words.
    """

    id: str
    records: Mapping[str, Record]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape, dtype, place; reads no tensor data."""
        return self._specs

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {name: record.spec for name, record in self.records.items()}

    def read(self, name: str, *, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor of that name; with a range, the flat elements ``start`` to ``stop``.

        Raises:
            UnknownName: There is no such tensor.
            InvalidParameter: The range leaves the tensor.
            CheckpointError: The file changed, was truncated or is damaged.
        """
        record = self.records.get(name)
        if record is None:
            raise unknown_tensor(name, self.id, list(self.records))
        begin, end = checked_range(name, record.spec, start, stop)
        try:
            elements = record.read(begin, end)
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{record.region.file.name}: {shown(name)} {error}.") from error
        whole = start == 0 and stop is None
        return elements.reshape(record.spec.shape) if whole else elements


def extent_of(checkpoint: Checkpoint, name: str) -> Extent | None:
    """Where a tensor can be read past ``Checkpoint.read``, or None where it must go through it."""
    inner = getattr(checkpoint, "inner", None)
    if inner is not None:
        return extent_of(inner, getattr(checkpoint, "prefix", "") + name)
    return checkpoint.records[name].extent() if isinstance(checkpoint, FileCheckpoint) else None


def source_files(checkpoint: Checkpoint) -> list[SourceFile]:
    """The files that the tensors of a checkpoint lie in."""
    inner = getattr(checkpoint, "inner", None)
    if inner is not None:
        return source_files(inner)
    if not isinstance(checkpoint, FileCheckpoint):
        return []
    return list({id(r.region.file): r.region.file for r in checkpoint.records.values()}.values())


def unknown_tensor(name: str, checkpoint: str, names: list[str]) -> UnknownName:
    """The error for a name that a checkpoint does not have."""
    return UnknownName(
        f"{shown(checkpoint)} has no tensor {shown(name)!r}.{did_you_mean(name, names)}"
    )


def checked_range(name: str, spec: TensorSpec, start: int, stop: int | None) -> tuple[int, int]:
    """The range as flat element numbers; InvalidParameter where it leaves the tensor."""
    end = spec.numel if stop is None else stop
    if not 0 <= start <= end <= spec.numel:
        raise InvalidParameter(
            f"{shown(name)} has {spec.numel} elements; {start} to {end} were asked for."
        )
    return start, end
