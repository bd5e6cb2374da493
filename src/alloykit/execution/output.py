"""The files that a merge writes: hidden until they are whole, and able to be continued."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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


class PartialFiles:
    """The files of a target while they are being written, each at its full size from the start.

    Args:
        paths: The files.
        layouts: Their layouts.
        create: Make them anew, with their headers; otherwise they must be there.

    Raises:
        CheckpointError: What is there is not what such a run began.
    """

    def __init__(self, paths: Sequence[Path], layouts: Sequence[Layout], *, create: bool) -> None:
        self.paths = list(paths)
        self.layouts = list(layouts)
        self._files: list[int] = []
        self._direct: list[int | None] = []
        self._buffered: set[int] = set()
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL) * create
        try:
            for path, layout in zip(paths, layouts, strict=True):
                self._files.append(os.open(path, flags, 0o666))
                if create:
                    reserve(self._files[-1], _padded(layout))
                    write_at(self._files[-1], memoryview(layout.header), 0)
                else:
                    _require_begun(self._files[-1], path, layout)
                self._direct.append(_open_direct(path))
        except BaseException:
            self.close()
            raise

    def write(self, block: Block, data: memoryview) -> None:
        """Write the bytes of a block where they belong, past the page cache where that works."""
        direct = self._direct[block.file]
        if direct is not None and block.size % PAGE == 0 and block.file not in self._buffered:
            try:
                write_at(direct, data, block.start)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._buffered.add(block.file)
        write_at(self._files[block.file], data, block.start)

    def head(self, block: Block) -> bytes:
        """The first bytes of a block, as they can be read now."""
        return os.pread(self._files[block.file], min(PAGE, block.size), block.start)

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
        """Close the files, all of them even where one cannot be."""
        with ExitStack() as stack:
            for file in (*self._files, *(each for each in self._direct if each is not None)):
                stack.callback(os.close, file)
            self._files, self._direct = [], []


def _padded(layout: Layout) -> int:
    """Size of a file while it is written: whole pages."""
    return -(-layout.size // PAGE) * PAGE


def _require_begun(file: int, path: Path, layout: Layout) -> None:
    size = os.fstat(file).st_size
    sized = size in (layout.size, _padded(layout))
    if sized and os.pread(file, len(layout.header), 0) == layout.header:
        return
    raise CheckpointError(
        f"{shown(str(path))} is not the file that this merge began to write. Start it anew."
    )


def _open_direct(path: Path) -> int | None:
    """The file once more, for writing past the page cache; None where that is not offered."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None


def publish_target(target: Target, *, overwrite: bool) -> None:
    """Give the finished file or folder its name; on an error what was there is there again."""
    old = target.path.parent / f".{target.path.name}.replaced"
    if target.names:
        sync_folder(target.partial)
        _publish_folder(target, old, overwrite)
    else:
        _publish_file(target, old, overwrite)


def _publish_file(target: Target, old: Path, overwrite: bool) -> None:
    path = target.path
    if overwrite:
        # A second name of what is replaced; without one, where links are not offered, it is lost.
        with suppress(OSError):
            old.unlink(missing_ok=True)
            os.link(path, old)
    try:
        publish(target.partial, path, overwrite)
    except BaseException:
        if overwrite and os.path.lexists(old):
            old.replace(path)
        elif not overwrite and _same(target.partial, path):
            path.unlink()
        raise
    finally:
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _publish_folder(target: Target, old: Path, overwrite: bool) -> None:
    path = target.path
    moved = overwrite and path.is_dir()
    if moved:
        _remove_folder(old)
        path.rename(old)
    elif os.path.lexists(path):
        raise OutputExists(f"{shown(str(path))} appeared meanwhile. Choose another name.")
    try:
        target.partial.rename(path)
        sync_folder(path.parent)
    except BaseException:
        if not target.partial.exists():
            with suppress(OSError):
                path.rename(target.partial)
        if moved:
            with suppress(OSError):
                old.rename(path)
        raise
    _remove_folder(old)


def _same(a: Path, b: Path) -> bool:
    with suppress(OSError):
        return a.samefile(b)
    return False


def _remove_folder(folder: Path) -> None:
    """Remove a folder of files, as far as it lets itself be removed."""
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


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
    if target.names:
        _remove_folder(target.partial)
    with suppress(OSError):
        target.partial.unlink()
