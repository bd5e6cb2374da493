"""The zip archives that torch.save and numpy.savez make, opened with suspicion."""

from __future__ import annotations

import lzma
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from alloykit.checkpoints.file_checkpoint import FileRegion
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing

LOCAL_HEADER = b"PK\x03\x04"
ENCRYPTED = 0x1
UNPACKING_ERRORS = (zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError)


class Entry(NamedTuple):
    """One file of the archive, known to lie inside it and to overlap no other.

    Attributes:
        name: Its name in the archive.
        size: Number of bytes when unpacked.
        region: Those bytes.
        compressed: Whether they are compressed in the archive.
    """

    name: str
    size: int
    region: FileRegion | InflatedRegion
    compressed: bool

    def bytes(self) -> bytes:
        """All of them; meant for small entries."""
        return self.region.read(0, self.size).numpy().tobytes()


class InflatedRegion:
    """The bytes of a compressed entry; reading forwards unpacks each of them once.

    Args:
        file: The archive.
        archive: The same as a zip file.
        info: The entry.
    """

    def __init__(self, file: SourceFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.file = file
        self._archive = archive
        self._info = info
        self._stream = archive.open(info)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> Tensor:
        """Bytes ``start`` to ``stop`` of the region, as a fresh uint8 tensor."""
        with self._lock:
            try:
                self._stream.seek(start)
                data = self._stream.read(stop - start)
            except UNPACKING_ERRORS as error:
                _refuse(self.file, f"{shown(self._info.filename)} cannot be unpacked: {error}")
        if len(data) != stop - start:
            _refuse(self.file, f"{shown(self._info.filename)} ends too early")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _nothing()

    peek = read


def open_zip(file: SourceFile, *, compressed: bool) -> Mapping[str, Entry]:
    """The entries of a zip archive by name, after checking that they are what they claim.

    Args:
        file: The archive.
        compressed: Whether entries may be compressed; numpy.savez_compressed does, torch never.

    Raises:
        CheckpointError: Damaged, encrypted, overlapping, doubled or unexpectedly packed entries.
    """
    try:
        archive = zipfile.ZipFile(file.stream())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        _refuse(file, f"{error} (truncated?)")
    infos = archive.infolist()
    wrong = _doubled(infos) + [
        f"{shown(info.filename)}: {why}" for info in infos if (why := _complaint(info, compressed))
    ]
    starts = {} if wrong else {info.filename: _start(file, info) for info in infos}
    wrong = wrong or _overlaps(file, infos, starts)
    if wrong:
        _refuse(file, f"{counted(len(wrong), 'thing')} in it cannot be", wrong)
    # torch.serialization.set_crc32_options(False) leaves every checksum zero.
    checked = any(info.CRC for info in infos)
    return {i.filename: _entry(file, archive, i, starts[i.filename], checked) for i in infos}


def _entry(
    file: SourceFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, start: int, checked: bool
) -> Entry:
    name, size = info.filename, info.file_size
    if info.compress_type == zipfile.ZIP_STORED:
        crc = info.CRC if checked else None
        return Entry(name, size, FileRegion(file, start, size, crc=crc, name=name), False)
    try:
        return Entry(name, size, InflatedRegion(file, archive, info), True)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        _refuse(file, f"{shown(name)} cannot be unpacked: {error}")


def _doubled(infos: list[zipfile.ZipInfo]) -> list[str]:
    counts = Counter(info.filename for info in infos)
    return [f"{shown(name)}: is there {count} times" for name, count in counts.items() if count > 1]


def _complaint(info: zipfile.ZipInfo, compressed: bool) -> str | None:
    if info.flag_bits & ENCRYPTED:
        return "is encrypted"
    if info.compress_type == zipfile.ZIP_STORED:
        same = info.file_size == info.compress_size
        return None if same else "is stored, yet has two sizes"
    return None if compressed else "is compressed, which torch.save never does"


def _start(file: SourceFile, info: zipfile.ZipInfo) -> int:
    """The first byte of the data, behind a local header that agrees with the directory."""
    # orig_filename, because a name with a NUL byte is cut in filename.
    name = info.orig_filename
    names = {name.encode("utf-8", "replace"), *(() if name.isascii() else [_cp437(name)])}
    at = info.header_offset
    stop = min(at + 30 + max(map(len, names)), file.size)
    head = file.read(at, stop) if 0 <= at <= stop - 30 else b""
    lengths = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    start = at + 30 + sum(lengths)
    if head[:4] != LOCAL_HEADER or start + info.compress_size > file.size:
        _refuse(file, f"{shown(info.filename)} does not lie inside it (truncated?)")
    if head[30 : 30 + lengths[0]] not in names:
        _refuse(file, f"{shown(info.filename)} has two names")
    if int.from_bytes(head[8:10], "little") != info.compress_type:
        _refuse(file, f"{shown(info.filename)} is packed in two ways")
    return start


def _cp437(name: str) -> bytes:
    return name.encode("cp437", "replace")


def _overlaps(
    file: SourceFile, infos: list[zipfile.ZipInfo], starts: Mapping[str, int]
) -> list[str]:
    wrong, end = [], 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            wrong.append(f"{shown(info.filename)}: overlaps the entry before it")
        end = max(end, starts[info.filename] + info.compress_size)
    return wrong


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _refuse(file: SourceFile, why: str, lines: list[str] | None = None) -> NoReturn:
    end = f":\n{listing(lines)}\n" if lines else ". "
    raise CheckpointError(
        f"{file.name} is not a usable zip archive: {why}{end}Copy or download it again."
    )
