"""The one door to checkpoints: whatever holds named tensors becomes a Checkpoint."""

from __future__ import annotations

import difflib
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alloykit.checkpoints.dcp_folder import INDEX, is_dcp, open_dcp
from alloykit.checkpoints.file_checkpoint import FileCheckpoint
from alloykit.checkpoints.memory import (
    MemoryCheckpoint,
    from_mapping,
    from_module,
    from_sequence,
)
from alloykit.checkpoints.npz_file import open_npz
from alloykit.checkpoints.other_formats import refuse_other_formats
from alloykit.checkpoints.safetensors_file import open_safetensors
from alloykit.checkpoints.sharded_folder import is_index, open_folder, open_index
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.torch_file import open_torch
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.names import wrapper_prefix
from alloykit.types import Checkpoint, TensorSpec

KINDS = (
    "a .safetensors, .pt, .pth, .bin, .ckpt or .npz file, a folder of shards, or a folder of "
    "torch.distributed.checkpoint"
)
TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt"})


def open_checkpoint(
    source: Any, *, name: str | None = None, trust_pickle: bool = False
) -> Checkpoint:
    """Open whatever holds named tensors; of a file only the index is read, and nothing is run.

    Pickles (.pt, .pth, .bin, .ckpt) are read by a small interpreter that builds records and calls
    nothing. Classes outside a short list make it refuse the file; with ``trust_pickle`` they
    become inert placeholders instead. Even then nothing is imported, called or executed.

    Prefixes that wrappers put before *every* name (``module.``, ``_orig_mod.``) are taken off and
    reported in ``notes``. Of a training checkpoint the weights are found at the root or under
    ``state_dict``, ``model_state_dict`` or ``model``; "run.ckpt#ema" names another entry.

    Args:
        source: A module; a state dict; a list of arrays or tensors; the path of a .safetensors,
            .pt, .pth, .bin, .ckpt or .npz file, of a folder of shards or of one that
            torch.distributed.checkpoint wrote; or a Checkpoint, which is returned as it is.
        name: What to call it; by default the file's stem, or the digest of the content.
        trust_pickle: Read pickles that mention classes that are not known to be harmless.

    Raises:
        CheckpointError: The source cannot be read, is damaged or holds no tensors.
        UnsafeCheckpoint: A pickle mentions code that is not known to be harmless.

    Example:
        >>> import torch
        >>> checkpoint = open_checkpoint({"module.w": torch.ones(2)}, name="a")
        >>> list(checkpoint.specs()), checkpoint.notes
        (['w'], ("every name began with 'module.', which was taken off",))
    """
    if isinstance(source, nn.Module):
        return _unwrapped(from_module(source, name))
    if isinstance(source, str | Path):
        with _collection_paused():
            return _unwrapped(_open_path(str(source), name, trust_pickle))
    if isinstance(source, Mapping):
        return _unwrapped(from_mapping(source, name))
    if isinstance(source, list | tuple):
        return from_sequence(source, name)
    if isinstance(source, Checkpoint):
        return source
    raise CheckpointError(
        f"A {type(source).__name__} is not a checkpoint. Give a module, a state dict, a list of "
        f"arrays, or the path of {KINDS}."
    )


@contextmanager
def _collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: it would walk the growing index again and again.

    Without this a file of 100,000 tensors takes twice as long to open.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Unwrapped:
    """A checkpoint without the prefix that a wrapper put before every name.

    Attributes:
        inner: The checkpoint as stored.
        prefix: What every stored name begins with.
    """

    inner: FileCheckpoint | MemoryCheckpoint
    prefix: str

    @property
    def id(self) -> str:
        """The id of the checkpoint as stored."""
        return self.inner.id

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text that the file carries."""
        return self.inner.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the stored checkpoint, and that a prefix was taken off."""
        return (
            *self.inner.notes,
            f"every name began with {self.prefix!r}, which was taken off",
        )

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape, dtype, place; reads no tensor data."""
        return self._specs

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        cut = len(self.prefix)
        return {name[cut:]: spec for name, spec in self.inner.specs().items()}

    def read(self, name: str, *, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor of that name; with a range, the flat elements ``start`` to ``stop``."""
        return self.inner.read(self.prefix + name, start=start, stop=stop)


def _unwrapped(
    checkpoint: FileCheckpoint | MemoryCheckpoint,
) -> FileCheckpoint | MemoryCheckpoint | Unwrapped:
    names = checkpoint.specs()
    prefix = wrapper_prefix(names)
    return Unwrapped(checkpoint, prefix) if prefix and prefix not in names else checkpoint


def _open_path(given: str, name: str | None, trust_pickle: bool) -> FileCheckpoint:
    path, key = _path_and_key(given)
    if path.name == INDEX:
        path = path.parent
    if path.is_dir():
        return _open_folder(path, name or path.resolve().name, key, trust_pickle)
    if is_index(path):
        _refuse_key(path, key)
        return open_index(path, name or path.resolve().parent.name, trust_pickle=trust_pickle)
    file = SourceFile(path)
    refuse_other_formats(file)
    id = name or path.stem
    suffix = path.suffix.lower()
    kind = suffix if suffix in (".safetensors", ".npz") else _kind_of_content(file)
    if kind == "torch" or (kind == "" and suffix in TORCH_SUFFIXES):
        return open_torch(file, id, key=key, trust_pickle=trust_pickle)
    _refuse_key(path, key)
    if kind == ".safetensors":
        return open_safetensors(file, id)
    if kind == ".npz":
        return open_npz(file, id)
    raise CheckpointError(f"{file.name} is no kind of checkpoint that is known. Give {KINDS}.")


def _open_folder(folder: Path, id: str, key: str | None, trust_pickle: bool) -> FileCheckpoint:
    try:
        os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise CheckpointError(
            f"The folder {shown(str(folder))} cannot be read: {error.strerror}."
        ) from error
    if is_dcp(folder):
        return open_dcp(folder, id, key=key, trust_pickle=trust_pickle)
    _refuse_key(folder, key)
    return open_folder(folder, id, trust_pickle=trust_pickle)


def _path_and_key(given: str) -> tuple[Path, str | None]:
    """The path, and what follows "#" unless a file of the whole name exists."""
    try:
        path = Path(given).expanduser()
        if path.exists():
            return path, None
        before, mark, key = given.rpartition("#")
        if mark and Path(before).expanduser().exists():
            return Path(before).expanduser(), key
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{shown(given)} cannot be opened: {error}.") from error
    if path.is_symlink():
        raise CheckpointError(f"{shown(given)} is a link to a file that does not exist.")
    raise CheckpointError(f"There is no file {shown(given)}.{_neighbours(path)}")


def _neighbours(path: Path) -> str:
    """A hint with the names in the folder that resemble the one asked for."""
    if not path.parent.is_dir():
        return f" There is no folder {shown(str(path.parent))} either."
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(map(shown, close))}?" if close else ""


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise CheckpointError(
            f"{shown(str(path))} has no entries to choose from: '#{shown(key)}' works with "
            "pickled training checkpoints only."
        )


def _kind_of_content(file: SourceFile) -> str:
    head = file.read(0, min(9, file.size))
    if head[:4] == b"PK\x03\x04":
        return ".npz" if _first_entry(file).endswith(b".npy") else "torch"
    if head[:1] == b"\x80":
        return "torch"
    return ".safetensors" if head[8:] == b"{" else ""


def _first_entry(file: SourceFile) -> bytes:
    head = file.read(0, min(30, file.size))
    length = int.from_bytes(head[26:28], "little")
    return file.read(30, min(30 + length, file.size)) if len(head) == 30 else b""
