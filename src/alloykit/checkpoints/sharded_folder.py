"""Folders in Hugging Face's layout: one file of weights, or shards with an index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

from alloykit.checkpoints.file_checkpoint import FileCheckpoint, Record
from alloykit.checkpoints.other_formats import refuse_other_formats
from alloykit.checkpoints.safetensors_file import open_safetensors
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.strict_json import parse
from alloykit.checkpoints.torch_file import open_torch
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
LARGEST_INDEX = 100_000_000
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz"})


def open_folder(folder: Path, id: str, *, trust_pickle: bool = False) -> FileCheckpoint:
    """Open the weights of a folder: safetensors where there are any, else pickled ones.

    Args:
        folder: The folder.
        id: What the checkpoint is called.
        trust_pickle: See ``open_torch``.

    Raises:
        CheckpointError: No weights under a known name, both a single file and an index, or an
            index that does not agree with its shards, with every disagreement.
    """
    for name in SINGLE_FILES:
        single, index = folder / name, folder / f"{name}.index.json"
        if _there(single) and _there(index):
            raise CheckpointError(
                f"{shown(str(folder))} holds both {name} and {index.name}. "
                "Give the path of the one you mean, or remove the other."
            )
        if _there(single):
            return _open_weights(single, id, trust_pickle)
        if _there(index):
            return open_index(index, id, trust_pickle=trust_pickle)
    raise CheckpointError(_nothing_found(folder))


def _there(path: Path) -> bool:
    # Also False where the name cannot be one, for instance because it is too long.
    return os.path.lexists(path)


def _nothing_found(folder: Path) -> str:
    known = " or ".join(SINGLE_FILES)
    text = f"{shown(str(folder))} holds no {known}, and no index of shards."
    others = sorted(
        e.name for e in folder.iterdir() if e.suffix.lower() in WEIGHT_SUFFIXES or is_index(e)
    )
    if not others:
        return text
    return f"{text} Give the path of the file you mean:\n{listing(map(shown, others))}"


def _open_weights(path: Path, id: str, trust_pickle: bool) -> FileCheckpoint:
    file = SourceFile(path)
    refuse_other_formats(file)
    # The name decides, never the content: what is called safetensors must not end in a pickle.
    if path.suffix == ".safetensors":
        return open_safetensors(file, id)
    return open_torch(file, id, trust_pickle=trust_pickle)


def is_index(path: Path) -> bool:
    """Whether the name is that of an index of shards, such as model.safetensors.index.json."""
    return path.name.endswith(INDEX_SUFFIXES)


def open_index(path: Path, id: str, *, trust_pickle: bool = False) -> FileCheckpoint:
    """Open the shards that an index lists.

    Args:
        path: The index; its name says what the shards are: NAME.safetensors.index.json, or .bin.
        id: What the checkpoint is called.
        trust_pickle: See ``open_torch``.

    Raises:
        CheckpointError: The index does not agree with its shards, with every disagreement.
    """
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    index = SourceFile(path)
    weight_map = _weight_map(index, suffix)
    shards = {
        name: _open_weights(path.parent / name, name, trust_pickle)
        for name in sorted(set(weight_map.values()))
    }
    _check_agreement(index, weight_map, shards)
    records = {
        name: _with_place(record, shard)
        for shard, checkpoint in shards.items()
        for name, record in checkpoint.records.items()
    }
    notes = [note for checkpoint in shards.values() for note in checkpoint.notes]
    metadata = next(iter(shards.values())).metadata
    return FileCheckpoint(id, records, metadata, tuple(dict.fromkeys(notes)))


def _with_place(record: Record, shard: str) -> Record:
    """The record with a place that is its own among all shards."""
    spec = record.spec
    place = TensorSpec(spec.shape, spec.dtype, f"{shard}: {spec.place}")
    return Record(place, record.region, record.offset, record.strides, record.swapped)


def _weight_map(index: SourceFile, suffix: str) -> Mapping[str, str]:
    if index.size > LARGEST_INDEX:
        _refuse(index, f"it has {index.size} bytes, and the limit is {LARGEST_INDEX}")
    try:
        content = parse(index.read(0, index.size))
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        _refuse(index, f"it is not valid JSON: {error}")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "it has no weight_map from names of tensors to names of files")
    wrong = {shown(f): why for f in weight_map.values() if (why := _complaint(index, f, suffix))}
    if wrong:
        lines = [f"{file}: {why}" for file, why in wrong.items()]
        _refuse(index, f"{counted(len(lines), 'shard')} cannot be used", lines)
    return weight_map


def leaves_folder(name: str) -> bool:
    """Whether a name that an index gives may lead to a file elsewhere.

    Example:
        >>> leaves_folder("model-1.safetensors"), leaves_folder("../model-1.safetensors")
        (False, True)
    """
    # Read as on Windows, where both slashes and drive letters lead out of the folder.
    parsed = PureWindowsPath(name)
    return parsed.name != name or name in (".", "..") or bool(parsed.drive) or "\0" in name


def _complaint(index: SourceFile, shard: Any, suffix: str) -> str | None:
    """Why the name of a shard cannot be followed."""
    if not isinstance(shard, str):
        return "not the name of a file"
    if leaves_folder(shard):
        return "leaves the folder"
    if not shard.endswith(suffix):
        return f"does not end in {suffix}"
    file = index.path.parent / shard
    return None if _there(file) else "is missing"


def _check_agreement(
    index: SourceFile, weight_map: Mapping[str, str], shards: Mapping[str, FileCheckpoint]
) -> None:
    held: dict[str, list[str]] = {}
    for shard, checkpoint in shards.items():
        for name in checkpoint.records:
            held.setdefault(name, []).append(shard)
    wrong = []
    for name in dict.fromkeys([*weight_map, *held]):
        where, said = held.get(name, []), weight_map.get(name)
        if not where:
            wrong.append(f"{shown(name)}: missing from {shown(said)}")
        elif len(where) > 1:
            wrong.append(f"{shown(name)}: in {len(where)} shards, {', '.join(map(shown, where))}")
        elif said != where[0]:
            listed = f"in {shown(said)} by the index" if said else "not in the index"
            wrong.append(f"{shown(name)}: in {shown(where[0])}, {listed}")
    if wrong:
        _refuse(index, f"{counted(len(wrong), 'tensor')} disagree with its shards", wrong)


def _refuse(index: SourceFile, why: str, lines: list[str] | None = None) -> NoReturn:
    end = f":\n{listing(lines)}\n" if lines else ". "
    raise CheckpointError(
        f"{index.name} is not a usable index of shards: {why}{end}Download the folder again."
    )
