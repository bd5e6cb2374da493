"""Checkpoints of torch.distributed.checkpoint: a folder of .distcp files and their .metadata."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch

from alloykit.checkpoints.chunked_region import Chunk, ChunkedRegion, Sizes, tiling_problem
from alloykit.checkpoints.element_types import SUPPORTED
from alloykit.checkpoints.extents import MOST_DIMENSIONS, naturals
from alloykit.checkpoints.file_checkpoint import FileCheckpoint, Record
from alloykit.checkpoints.pickle_globals import (
    Global,
    Placeholder,
    StoredElements,
    TensorView,
    dtype_of,
)
from alloykit.checkpoints.sharded_folder import leaves_folder
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.torch_file import LARGEST_PICKLE, open_tensor, read_pickle
from alloykit.checkpoints.training_checkpoint import USUAL_KEYS, find_weights
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec

INDEX = ".metadata"
"""The file that says which tensors there are and where their chunks lie."""


def is_dcp(folder: Path) -> bool:
    """Whether a folder holds the index of a torch distributed checkpoint."""
    return os.path.lexists(folder / INDEX)


def open_dcp(
    folder: Path, id: str, *, key: str | None = None, trust_pickle: bool = False
) -> FileCheckpoint:
    """Open a torch distributed checkpoint; nothing in it is imported, called or executed.

    The index is a pickle, and every chunk is a small file of torch.save inside a .distcp file: both
    are read by the interpreter that reads other torch files. A tensor that is cut into chunks is
    read by flat range, from the chunks that the range touches. Weights are looked for as in a
    training checkpoint: at the root, or under ``model``, ``state_dict`` or ``model_state_dict``,
    also one level deeper ("app.model").

    Args:
        folder: The folder.
        id: What the checkpoint is called.
        key: The entry that holds the weights; looked for when None.
        trust_pickle: See ``open_torch``.

    Raises:
        UnsafeCheckpoint: The index mentions names that are not known to be harmless.
        CheckpointError: The index is damaged, or its tensors are not all there, all listed.

    References:
        torch.distributed.checkpoint, https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
    """
    index = SourceFile(folder / INDEX)
    layout = _layout(index, trust_pickle)
    where = shown(str(folder))
    root = _root(where, layout, key)
    weights = find_weights(where, root, key or _deeper_entry(root))
    pieces = _Pieces(index, layout.stored, trust_pickle)
    wrong = []
    records = {}
    for name, view in weights.tensors.items():
        try:
            records[name] = pieces.record(view.storage.key, layout.tensors[view.storage.key])
        except ValueError as error:
            wrong.append(f"{shown(name)}: {error}")
    if wrong:
        _refuse(index, f"{counted(len(wrong), 'tensor')} cannot be read", wrong)
    return FileCheckpoint(id, records, {}, weights.notes)


_At: TypeAlias = tuple[str, Sizes]
"""Full name of a tensor, and the offsets of a chunk."""

_Span: TypeAlias = tuple[str, int, int]
"""A file, the first byte in it, and the number of bytes."""


@dataclass(frozen=True)
class _Layout:
    """What the index says.

    Attributes:
        tensors: Full name -> state of its record in the index.
        others: Full names of what is no tensor.
        paths: Full name -> keys that lead to it through nested dictionaries, where known.
        stored: Full name and offsets of a chunk -> file, first byte and length.
    """

    tensors: Mapping[str, Mapping[str, Any]]
    others: Sequence[str]
    paths: Mapping[str, tuple[str, ...]]
    stored: Mapping[_At, _Span]


def _layout(index: SourceFile, trust_pickle: bool) -> _Layout:
    if index.size > LARGEST_PICKLE:
        _refuse(index, f"it has {index.size} bytes, and the limit is {LARGEST_PICKLE}")
    pickled = read_pickle(index, index.read(0, index.size), trust_pickle=trust_pickle)
    state = _state(pickled.root, "Metadata")
    entries = state.get("state_dict_metadata")
    stored = state.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        _refuse(index, "it is not what torch.distributed.checkpoint writes")
    paths = state.get("planner_data")
    named = {name: entry for name, entry in entries.items() if isinstance(name, str)}
    tensors = {name: _state(entry, "TensorStorageMetadata") for name, entry in named.items()}
    return _Layout(
        {name: found for name, found in tensors.items() if found},
        [name for name, found in tensors.items() if not found],
        _paths(paths if isinstance(paths, dict) else {}),
        dict(filter(None, (_location(at, info) for at, info in stored.items()))),
    )


def _state(value: Any, kind: str) -> Mapping[str, Any]:
    """The attributes of a placeholder of that class; {} where it is something else."""
    named = isinstance(value, Placeholder) and value.name.rpartition(".")[2] == kind
    return value.state if named and isinstance(value.state, dict) else {}


def _paths(planned: Mapping[Any, Any]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(map(str, path))
        for name, path in planned.items()
        if isinstance(name, str)
        and isinstance(path, tuple)
        and path
        and all(isinstance(key, str | int) for key in path)
    }


def _location(at: Any, info: Any) -> tuple[_At, _Span] | None:
    """Where one chunk is stored; None for what is not a tensor's, or not as it should be."""
    where, what = _state(at, "MetadataIndex"), _state(info, "_StorageInfo")
    name, offsets = where.get("fqn"), where.get("offset")
    file, start, length = what.get("relative_path"), what.get("offset", -1), what.get("length", -1)
    texts = isinstance(name, str) and isinstance(file, str)
    if not texts or not naturals((start, length)) or what.get("transform_descriptors"):
        return None
    try:
        return (str(name), _sizes(offsets)), (str(file), start, length)
    except ValueError:
        return None


def _root(file: str, layout: _Layout, key: str | None) -> dict[str, Any]:
    """What was saved as nested dictionaries, as ``find_weights`` wants them."""
    root: dict[str, Any] = {}
    for name in (*layout.tensors, *layout.others):
        path = layout.paths.get(name, (name,))
        tensor = layout.tensors.get(name)
        value = _stand_in(name, tensor) if tensor else Placeholder("builtins.object")
        depth = _depth(path, key)
        head, rest = ".".join(path[:depth]), ".".join(path[depth:])
        within = root.setdefault(head, {}) if depth else root
        if not isinstance(within, dict) or rest in within:
            # Keys with dots can spell one name in two ways; nothing may be lost in silence.
            raise CheckpointError(
                f"{file}: {shown(name)} has the name of another entry. Save it again under names "
                "that differ."
            )
        within[rest] = value
    return root


def _stand_in(name: str, tensor: Mapping[str, Any]) -> TensorView:
    """A record as other torch files have it; its storage is called by the full name."""
    size = tensor.get("size")
    shape = size if isinstance(size, tuple) else ()
    return TensorView(StoredElements(name, torch.uint8, 0), torch.uint8, 0, shape, ())


def _depth(path: tuple[str, ...], key: str | None) -> int:
    """How many of the keys lead to the dictionary that a tensor belongs to."""
    for depth in range(1, len(path)):
        if ".".join(path[:depth]) == key or (key is None and path[depth - 1] in USUAL_KEYS):
            return depth
    return min(len(path) - 1, 1)


def _deeper_entry(root: Mapping[str, Any]) -> str | None:
    """An entry such as "app.model", where it is the only place for the weights."""
    if any(isinstance(value, TensorView) for value in root.values()):
        return None
    usual = [name for name in root if name.rpartition(".")[2] in USUAL_KEYS]
    return usual[0] if len(usual) == 1 and "." in usual[0] else None


class _Pieces:
    """The .distcp files of a folder, and the parts of them that hold chunks.

    Args:
        index: The .metadata file.
        stored: See ``_Layout``.
        trust_pickle: See ``open_torch``.
    """

    def __init__(self, index: SourceFile, stored: Mapping[_At, _Span], trust_pickle: bool) -> None:
        self._index = index
        self._stored = stored
        self._trust = trust_pickle
        self._files: dict[str, SourceFile] = {}

    def record(self, name: str, tensor: Mapping[str, Any]) -> Record:
        """The record of a tensor; ValueError where it is not all there."""
        shape, dtype, boxes = _described(tensor)
        spec = TensorSpec(shape, dtype, name)
        # Only of tensors without elements may there be nothing to read.
        chunks = [self._chunk(name, dtype, *box) for box in boxes if math.prod(box[1])]
        if spec.numel and (problem := tiling_problem(shape, chunks)):
            raise ValueError(problem)
        return Record(spec, ChunkedRegion(self._index, shape, dtype, chunks), 0)

    def _chunk(self, name: str, dtype: torch.dtype, offsets: Sizes, sizes: Sizes) -> Chunk:
        if (name, offsets) not in self._stored:
            raise ValueError(f"its chunk at {list(offsets)} is not stored, or stored transformed")
        file, start, length = self._stored[name, offsets]
        part = self._file(file).window(start, start + length)
        return Chunk(offsets, sizes, partial(_chunk_record, part, dtype, sizes, self._trust))

    def _file(self, name: str) -> SourceFile:
        if name not in self._files:
            if leaves_folder(name):
                raise ValueError(f"its file {shown(name)} leaves the folder")
            self._files[name] = SourceFile(self._index.path.parent / name)
        return self._files[name]


def _described(tensor: Mapping[str, Any]) -> tuple[Sizes, torch.dtype, list[tuple[Sizes, Sizes]]]:
    """Shape, dtype, and offsets and sizes of the chunks; of replicas one."""
    properties, chunks = tensor.get("properties"), tensor.get("chunks")
    stated = properties.state if isinstance(properties, Placeholder) else None
    first = stated[0] if isinstance(stated, tuple) and stated else None
    dtype = dtype_of(first.name) if isinstance(first, Global) else None
    if dtype not in SUPPORTED:
        raise ValueError(f"its dtype {shown(getattr(first, 'name', 'nothing'))} is not supported")
    states = [_state(c, "ChunkStorageMetadata") for c in chunks] if isinstance(chunks, list) else []
    boxes = [(_sizes(state.get("offsets")), _sizes(state.get("sizes"))) for state in states]
    return _sizes(tensor.get("size")), dtype, list(dict.fromkeys(boxes))


def _sizes(value: Any) -> Sizes:
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS or not naturals(value):
        raise ValueError("its shape, or that of a chunk, is not described by natural numbers")
    return value


def _chunk_record(part: SourceFile, dtype: torch.dtype, sizes: Sizes, trust: bool) -> Record:
    record = open_tensor(part, trust_pickle=trust)
    if record.spec.shape != sizes or record.spec.dtype != dtype:
        found = f"{record.spec.dtype} {list(record.spec.shape)}"
        part.fail(f"holds {found}, and {INDEX} says {dtype} {list(sizes)}. Save it again.")
    return record


def _refuse(index: SourceFile, why: str, lines: list[str] | None = None) -> NoReturn:
    end = f":\n{listing(lines)}\n" if lines else ". "
    raise CheckpointError(
        f"{index.name} is not a usable index of a torch distributed checkpoint: {why}{end}"
        "Copy the whole folder again, or save it anew."
    )
