"""An open regular file that is read by offset and notices when it changes underneath."""

from __future__ import annotations

import copy
import errno
import io
import os
import resource
import stat
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError

BLOCK = 4 << 20
MOST_AT_ONCE = 1 << 30
SMALL = 1 << 16

_T = TypeVar("_T")
_Bytes: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint8]]"


class SourceFile:
    """A regular file, opened once; every read is by offset, so threads can share it.

    Args:
        path: Where it is. Folders, FIFOs, sockets and devices are refused without opening them.

    Raises:
        CheckpointError: It cannot be opened or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = shown(str(path))
        self._refuse_special(self._asked(path.stat))
        # Non-blocking: a FIFO that took the file's place a moment ago must not hang us.
        self._fd = self._asked(lambda: _opened(path))
        weakref.finalize(self, os.close, self._fd)
        status = self._asked(lambda: os.fstat(self._fd))
        self._refuse_special(status)
        self.size = status.st_size
        self._identity = _identity(status)
        self._origin = 0
        self._whole: SourceFile | None = None

    def fail(self, what: str) -> NoReturn:
        """Raise a CheckpointError about this file."""
        raise CheckpointError(f"{self.name} {what}")

    def window(self, start: int, stop: int) -> SourceFile:
        """The bytes from ``start`` to ``stop`` as a file of their own.

        Raises:
            CheckpointError: They do not all lie inside the file.
        """
        if not 0 <= start <= stop <= self.size:
            self.fail(f"has {self.size} bytes; a part of it was to be {start} to {stop}.")
        part = copy.copy(self)
        part.name = f"{self.name} (bytes {start} to {stop})"
        part.size = stop - start
        part._origin = self._origin + start
        part._whole = self  # which closes the file when nobody needs it any more
        return part

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file was written to since it was opened."""
        try:
            unchanged = _identity(os.fstat(self._fd)) == self._identity
        except OSError as error:
            self.fail(f"cannot be read any more: {error.strerror}.")
        if not unchanged:
            self.fail("changed while it was open. Start again when nothing writes to it.")

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``."""
        if 0 <= start <= stop <= self.size and stop - start <= SMALL:
            try:
                data = os.pread(self._fd, stop - start, self._origin + start)
            except OSError as error:
                self.fail(f"cannot be read at byte {start}: {error.strerror}.")
            if len(data) == stop - start:
                self.check_unchanged()
                return data
        return self._fetch(start, stop).tobytes()

    def read_tensor(self, start: int, stop: int) -> Tensor:
        """The bytes from ``start`` to ``stop`` as a fresh uint8 tensor."""
        return torch.from_numpy(self._fetch(start, stop))

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` with the bytes from ``start`` on.

        Whether the file has changed is not asked each time: call ``check_unchanged`` at the end.
        """
        if not 0 <= start <= self.size - len(view):
            self.fail(f"has {self.size} bytes; {len(view)} from byte {start} were asked for.")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(
                    self._fd, [view[done : done + MOST_AT_ONCE]], self._origin + start + done
                )
            except OSError as error:
                self.fail(f"cannot be read at byte {start + done}: {error.strerror}.")
            if count == 0:
                self.check_unchanged()
                self.fail(f"was truncated while it was read: it ends at byte {start + done}.")
            done += count

    def _fetch(self, start: int, stop: int) -> _Bytes:
        if not 0 <= start <= stop <= self.size:
            self.fail(f"has {self.size} bytes; bytes {start} to {stop} were asked for.")
        data: _Bytes = np.empty(stop - start, np.uint8)
        self.read_into(data.data, start)
        # Afterwards is enough: what is unchanged now was unchanged before these bytes were read.
        self.check_unchanged()
        return data

    def crc32(self, start: int, stop: int) -> int:
        """The CRC-32 of the bytes from ``start`` to ``stop``."""
        value = 0
        for at in range(start, stop, BLOCK):
            value = zlib.crc32(self.read_tensor(at, min(at + BLOCK, stop)).numpy().data, value)
        return value

    def stream(self) -> io.BufferedReader:
        """A seekable file object over the same open file, with its own position."""
        return io.BufferedReader(_Stream(self))

    def _asked(self, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except (OSError, ValueError) as error:
            self.fail(f"cannot be opened: {getattr(error, 'strerror', None) or error}.")

    def _refuse_special(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.fail("is a folder, and a file was expected.")
        if not stat.S_ISREG(status.st_mode):
            self.fail("is a pipe, socket or device, and a regular file was expected.")


def _opened(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # A few models of hundreds of shards need more files than most shells allow at first.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, flags)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # Without ctime: it moves when the file is renamed or linked, which leaves the bytes alone.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Stream(io.RawIOBase):
    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: object) -> int:
        view = memoryview(target).cast("B")  # type: ignore[arg-type]
        stop = min(self._at + len(view), self._file.size)
        data = self._file.read(min(self._at, stop), stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
