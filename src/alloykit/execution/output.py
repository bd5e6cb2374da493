"""The files that a merge writes: hidden until they are whole, and able to be continued."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alloykit.checkpoints.layout import PAGE, Layout
from alloykit.checkpoints.wording import shown
from alloykit.checkpoints.writing import check_target, publish, reserve, sync_folder, write_at
from alloykit.errors import CheckpointError, OutputExists
from alloykit.execution.blocks import Block

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Target:
    """What a merge will write, and under which names until then.

    Attributes:
        path: The file, or the folder of shards.
        names: Name of each file in the folder; of a single file empty.
    """

    path: Path
    names: tuple[str, ...] = ()

    @property
    def partial(self) -> Path:
        """The file or folder while it is being written."""
        return self.path.parent / f".{self.path.name}.partial"

    @property
    def journal(self) -> Path:
        """Which blocks are safe on disk."""
        return self.path.parent / f".{self.path.name}.journal"

    def files(self) -> list[Path]:
        """The files while they are being written."""
        return [self.partial / name for name in self.names] or [self.partial]


class Journal:
    """The blocks that are safe on disk, in a file that only grows; a torn last line is ignored.

    Args:
        path: Where it is.
        identity: Digest of everything that the blocks depend on.
        block: Bytes of a block.
    """

    def __init__(self, path: Path, identity: str, block: int) -> None:
        self.path = path
        self.head = {"identity": identity, "block": block}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise
            raise OutputExists(
                f"Another process is writing what {shown(str(path))} is the journal of. "
                "Wait for it, or choose another name."
            ) from error

    def begin(self) -> None:
        """Forget what was there, and note what the blocks will depend on."""
        os.ftruncate(self._file, 0)
        self._append(self.head)

    def add(self, blocks: Sequence[int]) -> None:
        """Note that these blocks are safe on disk."""
        self._append({"blocks": _spans(blocks)})

    def _append(self, record: dict[str, object]) -> None:
        text = json.dumps(record, sort_keys=True)
        os.write(self._file, f"{text} {zlib.crc32(text.encode()):08x}\n".encode())
        os.fsync(self._file)

    def read(self) -> tuple[dict[str, object], set[int]]:
        """What the blocks depend on, and which are done; empty where nothing can be used."""
        records = list(_records(self.path.read_bytes()))
        if not records or "identity" not in records[0]:
            return {}, set()
        done: set[int] = set()
        for record in records[1:]:
            for first, last in record.get("blocks", ()):  # type: ignore[attr-defined]
                done.update(range(first, last + 1))
        return records[0], done

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file, and of the right to write."""
        os.close(self._file)


def _records(data: bytes) -> Iterable[dict[str, object]]:
    for line in data.split(b"\n")[:-1]:
        text, _, check = line.rpartition(b" ")
        if check != f"{zlib.crc32(text):08x}".encode():
            return
        yield json.loads(text)


def _spans(blocks: Sequence[int]) -> list[list[int]]:
    """Numbers as runs: [3, 4, 5, 9] -> [[3, 5], [9, 9]]."""
    spans: list[list[int]] = []
    for block in sorted(blocks):
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return spans


class PartialFiles:
    """The files of a target while they are being written, each at its full size from the start.

    Args:
        paths: The files.
        layouts: Their layouts.
        create: Make them anew, with their headers; otherwise they must be there.
    """

    def __init__(self, paths: Sequence[Path], layouts: Sequence[Layout], *, create: bool) -> None:
        self.paths = list(paths)
        self.layouts = list(layouts)
        self._files: list[int] = []
        self._direct: list[int | None] = []
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        try:
            for path, layout in zip(paths, layouts, strict=True):
                self._files.append(os.open(path, flags, 0o666))
                if create:
                    # Room for the last page too, which is written whole.
                    reserve(self._files[-1], -(-layout.size // PAGE) * PAGE)
                    write_at(self._files[-1], memoryview(layout.header), 0)
                self._direct.append(_open_direct(path))
        except BaseException:
            self.close()
            raise

    def write(self, block: Block, data: memoryview) -> None:
        """Write the bytes of a block where they belong, past the page cache where that works.

        ``data`` must have room up to the next multiple of 4096 behind it.
        """
        direct = self._direct[block.file]
        if direct is not None and block.size % PAGE == 0:
            try:
                write_at(direct, data, block.start)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct[block.file] = None
        write_at(self._files[block.file], data, block.start)

    def sync(self) -> None:
        """Make sure that everything written is on the disk."""
        for file in self._files:
            os.fdatasync(file)

    def finish(self) -> None:
        """Cut the files to their size, and make them durable."""
        for file, layout in zip(self._files, self.layouts, strict=True):
            os.ftruncate(file, layout.size)
            os.fsync(file)

    def close(self) -> None:
        """Close the files."""
        for file in (*self._files, *(each for each in self._direct if each is not None)):
            os.close(file)
        self._files, self._direct = [], []


def _open_direct(path: Path) -> int | None:
    """The file once more, for writing past the page cache; None where that is not offered."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None


def publish_target(target: Target, *, overwrite: bool) -> None:
    """Give the finished file or folder its name."""
    if not target.names:
        publish(target.partial, target.path, overwrite)
        return
    sync_folder(target.partial)
    replaced = target.path.parent / f".{target.path.name}.replaced"
    if overwrite and target.path.is_dir():
        shutil.rmtree(replaced, ignore_errors=True)
        target.path.rename(replaced)
    elif os.path.lexists(target.path):
        raise OutputExists(f"{shown(str(target.path))} appeared meanwhile. Choose another name.")
    target.partial.rename(target.path)
    sync_folder(target.path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def check_folder(target: Target, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Refuse a target that cannot be written, would replace something, or is an input."""
    path = target.path
    if not target.names:
        check_target(path, overwrite, inputs)
        return
    if not path.parent.is_dir():
        raise CheckpointError(
            f"{shown(str(path))} cannot be written: there is no folder {shown(str(path.parent))}."
        )
    if any(each.resolve() in (path.resolve(), *path.resolve().parents) for each in inputs):
        raise OutputExists(f"{shown(str(path))} is, or lies in, one of the inputs.")
    if any(path.resolve() in each.resolve().parents for each in inputs):
        raise OutputExists(f"{shown(str(path))} holds one of the inputs. Choose another name.")
    if os.path.lexists(path) and not (overwrite and path.is_dir()):
        what = "exists" if path.is_dir() else "is a file, and shards go into a folder"
        raise OutputExists(
            f"{shown(str(path))} {what}. Choose another name"
            + (", or replace it with --overwrite (overwrite=True)." if path.is_dir() else ".")
        )
    if path.is_dir() and not _is_ours(path):
        raise OutputExists(
            f"{shown(str(path))} holds more than a folder of shards does, and would be replaced "
            "as a whole. Choose another name, or empty it."
        )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what a merge writes."""
    return all(
        each.is_file() and (each.suffix == ".safetensors" or each.suffix == ".json")
        for each in folder.iterdir()
    )


def discard(target: Target) -> None:
    """Remove what was written so far."""
    with suppress(OSError):
        if target.names:
            shutil.rmtree(target.partial, ignore_errors=True)
        else:
            target.partial.unlink(missing_ok=True)
