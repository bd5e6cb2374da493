"""An open regular file that is read by offset and notices when it changes underneath."""

from __future__ import annotations

import errno
import io
import os
import stat
import weakref
import zlib
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError

BLOCK = 4 << 20


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
        try:
            self._refuse_special(path.stat())
            # Non-blocking: a FIFO that took the file's place a moment ago must not hang us.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            self.fail(f"cannot be opened: {getattr(error, 'strerror', None) or error}.")
        weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        self._refuse_special(status)
        self.size = status.st_size
        self._identity = _identity(status)

    def fail(self, what: str) -> NoReturn:
        """Raise a CheckpointError about this file."""
        raise CheckpointError(f"{self.name} {what}")

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file was written to since it was opened."""
        if _identity(os.fstat(self._fd)) != self._identity:
            self.fail("changed while it was open. Start again when nothing writes to it.")

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``."""
        return self.read_tensor(start, stop).numpy().tobytes()

    def read_tensor(self, start: int, stop: int) -> Tensor:
        """The bytes from ``start`` to ``stop`` as a fresh uint8 tensor."""
        self.check_unchanged()
        if not 0 <= start <= stop <= self.size:
            self.fail(f"has {self.size} bytes; bytes {start} to {stop} were asked for.")
        buffer = torch.empty(stop - start, dtype=torch.uint8)
        view = buffer.numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done : done + (1 << 30)]], start + done)
            except OSError as error:
                self.fail(f"cannot be read at byte {start + done}: {error.strerror}.")
            if count == 0:
                self.fail(f"was truncated while it was read: it ends at byte {start + done}.")
            done += count
        self.check_unchanged()
        return buffer

    def crc32(self, start: int, stop: int) -> int:
        """The CRC-32 of the bytes from ``start`` to ``stop``."""
        value = 0
        for at in range(start, stop, BLOCK):
            value = zlib.crc32(self.read_tensor(at, min(at + BLOCK, stop)).numpy().data, value)
        return value

    def stream(self) -> io.BufferedReader:
        """A seekable file object over the same open file, with its own position."""
        return io.BufferedReader(_Stream(self))

    def _refuse_special(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.fail("is a folder, and a file was expected.")
        if not stat.S_ISREG(status.st_mode):
            self.fail("is a pipe, socket or device, and a regular file was expected.")


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
