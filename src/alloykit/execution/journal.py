"""Which blocks of an output are safe on disk, so that a killed run can be continued."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alloykit.checkpoints.wording import shown
from alloykit.errors import OutputExists

NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
"""What file systems say that have no locks: some that many machines share."""


class Journal:
    """The blocks that are safe on disk, in a file that only grows; a torn last line is ignored.

    Whoever has it locked may write the files that it is about. ``used`` says whether there may be
    blocks in it.

    Args:
        path: Where it is.
        identity: Digest of everything that the blocks depend on.
        block: Bytes of a block.
    """

    def __init__(self, path: Path, identity: str, block: int) -> None:
        self.path = path
        self.head: dict[str, object] = {"identity": identity, "block": block}
        self.used = self.locked = False
        self._file = -1

    def lock(self) -> None:
        """Open the file and lock it, where the file system has locks.

        Raises:
            OutputExists: Another process has it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            while not self.locked:
                # One that had the lock and ended since we opened the file has removed it.
                self.close()
                self._file = os.open(self.path, flags, 0o666)
                _lock(self._file, self.path)
                status = os.fstat(self._file)
                self.used = status.st_size > 0
                self.locked = _is_at(self.path, status)
        except BaseException:
            self.close()
            _remove_unused(self.path)
            raise

    def begin(self) -> None:
        """Forget what was there, and note what the blocks will depend on."""
        os.ftruncate(self._file, 0)
        self.used = False
        self._append(self.head)

    def add(self, blocks: Sequence[int]) -> None:
        """Note that these blocks are safe on disk."""
        self._append({"blocks": _spans(blocks)})
        self.used = True

    def _append(self, record: dict[str, object]) -> None:
        text = json.dumps(record, sort_keys=True)
        line = f"{text} {zlib.crc32(text.encode()):08x}\n".encode()
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, "the disk is full")
        os.fsync(self._file)

    def read(self) -> tuple[dict[str, object], set[int]]:
        """What the blocks depend on, and which are done; empty where nothing can be used.

        What follows the last whole line is cut off, so that lines can be added.
        """
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        records, end = _records(data)
        if not records or "identity" not in records[0]:
            return {}, set()
        os.ftruncate(self._file, end)
        done: set[int] = set()
        for record in records[1:]:
            for first, last in record.get("blocks", ()):  # type: ignore[attr-defined]
                done.update(range(first, last + 1))
        return records[0], done

    def remove(self) -> None:
        """Remove the file, if it lets itself be removed."""
        with suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Let go of the file, and of the right to write."""
        file, self._file = self._file, -1
        if file >= 0:
            with suppress(OSError):
                os.close(file)


def _is_at(path: Path, status: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(status, os.lstat(path))
    return False


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise
        raise OutputExists(
            f"Another process is writing what {shown(str(path))} is the journal of. "
            "Wait for it, or choose another name."
        ) from error


def _remove_unused(path: Path) -> None:
    """Remove a journal that holds nothing and that nobody has locked."""
    with suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.stat().st_size:
                path.unlink()
        finally:
            os.close(file)


def _records(data: bytes) -> tuple[list[dict[str, object]], int]:
    """The whole lines that a journal begins with, and where they end."""
    records: list[dict[str, object]] = []
    end = 0
    for line in data.split(b"\n")[:-1]:
        text, _, check = line.rpartition(b" ")
        if check != f"{zlib.crc32(text):08x}".encode():
            break
        records.append(json.loads(text))
        end += len(line) + 1
    return records, end


def _spans(blocks: Sequence[int]) -> list[list[int]]:
    """Numbers as runs: [3, 4, 5, 9] -> [[3, 5], [9, 9]]."""
    spans: list[list[int]] = []
    for block in sorted(blocks):
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return spans
