"""The file of a snapshot: named tensors and JSON in one safetensors file, with a digest of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.safetensors_file import open_safetensors
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.strict_json import parse
from alloykit.checkpoints.wording import shown
from alloykit.checkpoints.writing import write_safetensors
from alloykit.errors import CheckpointError
from alloykit.types import TensorSpec

RECORD, DIGEST = "alloykit.training", "alloykit.digest"


def save(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and JSON values; the file has its name only when it is whole."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    given = {name: tensor.detach() for name, tensor in tensors.items()}
    specs = {name: TensorSpec(tuple(t.shape), t.dtype, name) for name, t in given.items()}
    metadata = {RECORD: text, DIGEST: _digest(text, given)}
    write_safetensors(path, specs, given.items(), metadata=metadata, overwrite=True)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values and the tensors of a file that ``save`` wrote.

    Raises:
        CheckpointError: It cannot be read, is no snapshot, or its bytes changed.
    """
    file = open_safetensors(SourceFile(path), path.stem)
    text, digest = file.metadata.get(RECORD), file.metadata.get(DIGEST)
    if text is None or digest is None:
        raise CheckpointError(
            f"{shown(str(path))} is no snapshot of a training run. Give another folder."
        )
    tensors = {name: file.read(name) for name in file.specs()}
    if _digest(text, tensors) != digest:
        raise CheckpointError(
            f"{shown(str(path))} is damaged: its content does not match its digest. Delete it to "
            "train from the start, or copy it again."
        )
    record: dict[str, Any] = parse(text.encode())
    return record, tensors


def made_folder(folder: Path) -> None:
    """Make the folder of snapshots, where it is missing.

    Raises:
        CheckpointError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"The folder {shown(str(folder))} for snapshots cannot be made: {why}."
        ) from error


def sweep(folder: Path) -> None:
    """Remove what killed runs left half-written."""
    for left in folder.glob(".alloykit-*.tmp"):
        with suppress(FileNotFoundError):
            left.unlink()


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    content = content_digest(MemoryCheckpoint(tensors, "snapshot"))
    return hashlib.sha256(f"{content}\n{text}".encode()).hexdigest()
