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

    It is locked: whoever has it may write the files that it is about. ``used`` says whether there
    may be blocks in it.

    Args:
        path: Where it is.
        identity: Digest of everything that the blocks depend on.
        block: Bytes of a block.

    Raises:
        OutputExists: Another process has it.
    """

    def __init__(self, path: Path, identity: str, block: int) -> None:
        self.path = path
        self.head: dict[str, object] = {"identity": identity, "block": block}
        self._file, self.used = _locked(path)

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
        with suppress(OSError):
            os.close(self._file)


def _locked(path: Path) -> tuple[int, bool]:
    """The file, open, and locked where the file system has locks; and whether it holds anything."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        file = None
        try:
            file = os.open(path, flags, 0o666)
            _lock(file, path)
            status = os.fstat(file)
            if _is_at(path, status):
                return file, status.st_size > 0
        except BaseException:
            if file is not None:
                os.close(file)
            _remove_unused(path)
            raise
        # The run that had the lock has ended since we opened the file, and removed it.
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
