"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.layout import lay_out
from alloykit.checkpoints.wording import amount, shown
from alloykit.errors import CheckpointError, OutputExists, listing
from alloykit.types import TensorSpec

BLOCK = 8 << 20


@contextmanager
def atomic_write(
    path: str | Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()
) -> Iterator[BinaryIO]:
    """A binary file that gets its name only when it is complete and safe on disk.

    Inside the block the bytes go to a temporary file in the same folder. Leaving the block syncs
    it, gives it its name, and syncs the folder; leaving it by an exception removes it.

    Args:
        path: The name it will have; its folder must exist.
        overwrite: Whether an existing file may be replaced.
        inputs: Files, or folders of files, that must not be replaced even then.

    Raises:
        OutputExists: The file exists, or is one of the inputs under whatever name.
        CheckpointError: The folder is missing, or writing failed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> with atomic_write(target) as file:
        ...     _ = file.write(b"whole")
        >>> target.read_bytes()
        b'whole'
    """
    target = Path(path).expanduser()
    check_target(target, overwrite, [Path(each).expanduser() for each in inputs])
    temporary = target.parent / f".alloykit-{secrets.token_hex(8)}.tmp"
    try:
        with _create(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, target, overwrite)
    except OSError as error:
        if isinstance(error, CheckpointError | OutputExists):
            raise
        raise CheckpointError(
            f"{shown(str(target))} was not written: {error.strerror or error}."
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_safetensors(
    path: str | Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    metadata: Mapping[str, str],
    overwrite: bool = False,
    inputs: Sequence[str | Path] = (),
) -> None:
    """Write a .safetensors file from tensors that arrive one by one, in any order.

    Room is reserved before the first tensor is asked for. Equal inputs give equal bytes. Names
    with one place are tied: the first of them is stored, and the metadata key "alloykit.tied" says
    which stored name each other one stands for; ``open_checkpoint`` restores them.

    Args:
        path: The file to make.
        specs: Name -> shape, dtype and place of everything that will come.
        tensors: Name and tensor, each name once; of tied names the others may be left out.
        metadata: Text to put in the header; "format": "pt" is added, which transformers asks for.
        overwrite: Whether an existing file may be replaced.
        inputs: Files that must not be replaced even then.

    Raises:
        CheckpointError: A dtype that the format lacks, or tensors that do not match ``specs``.
        OutputExists: See ``atomic_write``.
    """
    layout = lay_out(specs, metadata)
    with atomic_write(path, overwrite=overwrite, inputs=inputs) as file:
        reserve(file.fileno(), layout.size)
        write_at(file.fileno(), memoryview(layout.header), 0)
        missing = set(layout.offsets)
        for name, tensor in tensors:
            if name in layout.tied:
                continue
            _check_tensor(name, tensor, specs, missing)
            write_at(file.fileno(), as_bytes(tensor).numpy().data, layout.offsets[name])
            missing.discard(name)
        if missing:
            raise CheckpointError(
                f"{shown(str(path))} was not written: {len(missing)} of {len(specs)} tensors "
                f"never came:\n{listing(map(shown, sorted(missing)))}"
            )


def _check_tensor(
    name: str, tensor: Tensor, specs: Mapping[str, TensorSpec], missing: set[str]
) -> None:
    if name not in missing:
        why = "came twice" if name in specs else "was not announced"
        raise CheckpointError(f"The tensor {shown(name)} {why}.")
    spec = specs[name]
    if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
        raise CheckpointError(
            f"{shown(name)} should be {spec.dtype} {list(spec.shape)}, "
            f"and is {tensor.dtype} {list(tensor.shape)}."
        )


def check_target(target: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Refuse a target that cannot be written, would replace something, or is an input."""
    name = shown(str(target))
    if not target.parent.is_dir():
        raise CheckpointError(
            f"{name} cannot be written: there is no folder {shown(str(target.parent))}."
        )
    if target.is_dir():
        raise CheckpointError(f"{name} cannot be written: it is a folder.")
    for each in inputs:
        files = [each, *each.iterdir()] if each.is_dir() else [each]
        if any(_same_file(target, file) for file in files):
            raise OutputExists(
                f"{name} is one of the inputs ({shown(str(each))}). Choose another name."
            )
    if os.path.lexists(target):
        if target.exists() and not target.is_file():
            raise CheckpointError(f"{name} cannot be written: it is not a regular file.")
        if not overwrite:
            raise _exists(target)


def _exists(target: Path) -> OutputExists:
    return OutputExists(
        f"{shown(str(target))} exists. Choose another name, or replace it with --overwrite "
        "(overwrite=True)."
    )


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _create(temporary: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(temporary, flags, 0o666), "w+b")


def publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the file its name, and make the name as durable as the bytes."""
    if overwrite:
        os.replace(temporary, target)  # noqa: PTH105
        return sync_folder(target.parent)
    _rename_new(temporary, target)
    try:
        return sync_folder(target.parent)
    except OSError:
        # Nothing was there before: an error must not leave a file that looks finished.
        target.unlink(missing_ok=True)
        raise


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename, unless somebody else took the name meanwhile; a plain rename would not notice."""
    try:
        os.link(temporary, target)
        temporary.unlink()
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.replace(temporary, target)  # noqa: PTH105


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reserve(file: int, size: int) -> None:
    """Take the room on the disk now, so that a full disk is known before any work is done."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(error.errno, f"the disk has no room for {amount(size)}") from error
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.ftruncate(file, size)


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at that offset, in as many calls as it takes."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + BLOCK], offset + done)
