"""Read the blocks of one tensor from every member, in order, into memory that is used again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alloykit.checkpoints.file_checkpoint import Extent, extent_of
from alloykit.types import GRAIN, Checkpoint

AHEAD = 8 * GRAIN
"""Elements that are read at a time from what is not read block by block."""


class Window:
    """Hands out blocks in the compute dtype, complex numbers as pairs of real ones.

    Where the bytes lie in a file as they are, each block is read into the same small buffer, from
    which it is converted while it is in the processor's cache. Everything else is read some way
    ahead through ``Checkpoint.read``.

    Args:
        sources: Position of every member -> its checkpoint.
        dtypes: The same -> the dtype that its tensor is stored in.
        name: Name of the tensor.
        end: Where the range that will be walked ends, in real elements.
        numel: Number of real elements of the whole tensor.
        wide: The compute dtype, before complex numbers are seen as pairs.
        device: Where the blocks go.
    """

    def __init__(
        self,
        sources: Mapping[int, Checkpoint],
        dtypes: Mapping[int, torch.dtype],
        name: str,
        end: int,
        numel: int,
        wide: torch.dtype,
        device: torch.device,
    ) -> None:
        self._name = name
        self._end = end
        self._numel = numel
        self._wide = wide
        self._device = device
        self._pairs = 2 if wide.is_complex else 1
        self._first, self._last = 0, -1
        self._buffers: dict[int, _Buffer] = {}
        self._ahead: dict[int, Checkpoint] = {}
        self._raw: dict[int, Tensor] = {}
        for position, source in sources.items():
            extent = extent_of(source, name) if self._pairs == 1 and device.type == "cpu" else None
            if extent is None:
                self._ahead[position] = source
            else:
                self._buffers[position] = _Buffer(extent, dtypes[position])

    def blocks(self, start: int, stop: int) -> dict[int, Tensor]:
        """A flat block of every member; valid until the next is asked for."""
        found = {
            position: buffer.read(start, stop).to(self._wide)
            for position, buffer in self._buffers.items()
        }
        if self._ahead:
            found |= self._from_ahead(start, stop)
        return found

    def raws(self, positions: Sequence[int], start: int, stop: int) -> list[Tensor]:
        """Flat blocks of these members as they are stored; valid until the next are asked for."""
        return [
            self._buffers[position].read(start, stop)
            if position in self._buffers
            else self._ahead[position].read(self._name, start=start, stop=stop)
            for position in positions
        ]

    def _from_ahead(self, start: int, stop: int) -> dict[int, Tensor]:
        if not self._first <= start <= stop <= self._last:
            self._read(start, max(stop, min(start + AHEAD, self._end)))
        low, high = start - self._first, stop - self._first
        if self._pairs == 1:
            return {i: raw[low:high].to(self._wide) for i, raw in self._raw.items()}
        return {
            i: torch.view_as_real(raw.to(self._wide).resolve_conj()).reshape(-1)[low:high]
            for i, raw in self._raw.items()
        }

    def _read(self, start: int, stop: int) -> None:
        pairs = self._pairs
        first, last = start // pairs, min(-(-stop // pairs), self._numel // pairs)
        for position, source in self._ahead.items():
            self._raw.pop(position, None)  # so that its memory is used again
            raw = source.read(self._name, start=first, stop=last)
            if self._device.type != "cpu":
                # From pinned memory a thread's copy runs beside the arithmetic of the others.
                raw = raw.pin_memory().to(self._device, non_blocking=True)
            self._raw[position] = raw
        self._first, self._last = first * pairs, last * pairs


class _Buffer:
    """One member's bytes, block by block."""

    def __init__(self, extent: Extent, dtype: torch.dtype) -> None:
        self._file, self._offset = extent
        self._size = dtype.itemsize
        self._dtype = dtype
        self._room = 0

    def read(self, start: int, stop: int) -> Tensor:
        count = stop - start
        if count > self._room:
            self._room = count
            data = torch.empty(count * self._size, dtype=torch.uint8)
            self._view = data.numpy().data
            self._values = data.view(self._dtype)
        place = self._offset + start * self._size
        if count == self._room:
            self._file.read_into(self._view, place)
            return self._values
        self._file.read_into(self._view[: count * self._size], place)
        return self._values[:count]
