"""SHA-256 digests of files and of what checkpoints hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.source_file import BLOCK, SourceFile
from alloykit.types import Checkpoint

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", ".metadata", "*.distcp")


def file_digest(path: str | Path) -> str:
    """The digest of a file's bytes, as "sha256:..."; of a folder, that of its weight files.

    A folder's digest covers the name and digest of every file of weights and every index in it.

    Args:
        path: A file or a folder of shards.

    Raises:
        CheckpointError: It cannot be read or is neither a regular file nor a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
        lines = [json.dumps([file.name, file_digest(file)]) for file in files]
        return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    file = SourceFile(path)
    digest = hashlib.sha256()
    for start in range(0, file.size, BLOCK):
        digest.update(file.read_tensor(start, min(start + BLOCK, file.size)).numpy().data)
    return f"sha256:{digest.hexdigest()}"


PIECES, PIECE = 256, 4096


def fingerprint(path: str | Path) -> str:
    """A digest of 1 MiB of a file, evenly spread, and of its size: "fingerprint:...".

    It tells apart files that were trained, merged or converted differently, at no cost. It does
    not notice a single changed byte, nor anybody who means to deceive: ``file_digest`` does.

    Args:
        path: A file, or a folder of shards.

    Raises:
        CheckpointError: It cannot be read or is neither a regular file nor a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
        lines = [json.dumps([file.name, fingerprint(file)]) for file in files]
        return f"fingerprint:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    file = SourceFile(path)
    digest = hashlib.sha256(f"{file.size}\n".encode())
    if file.size <= PIECES * PIECE:
        digest.update(file.read(0, file.size))
    else:
        for index in range(PIECES):
            start = (file.size - PIECE) * index // (PIECES - 1)
            digest.update(file.read(start, start + PIECE))
    return f"fingerprint:{digest.hexdigest()}"


def content_digest(checkpoint: Checkpoint) -> str:
    """The digest of a checkpoint's names, shapes, dtypes and values, as "sha256:...".

    It does not depend on the kind of file, the order of the tensors or the metadata: the same
    tensors give the same digest from a .pth, a .safetensors and memory.

    Args:
        checkpoint: Any checkpoint; read in blocks.

    Example:
        >>> import torch
        >>> from alloykit.checkpoints.memory import MemoryCheckpoint
        >>> a = MemoryCheckpoint({"w": torch.zeros(2), "b": torch.ones(1)}, "a")
        >>> b = MemoryCheckpoint({"b": torch.ones(1), "w": torch.zeros(2)}, "b")
        >>> content_digest(a) == content_digest(b)
        True
    """
    digest = hashlib.sha256()
    for name, spec in sorted(checkpoint.specs().items()):
        head = json.dumps([name, str(spec.dtype), list(spec.shape)])
        digest.update(f"{head}\n".encode())
        step = BLOCK // spec.dtype.itemsize
        for start in range(0, spec.numel, step):
            block = checkpoint.read(name, start=start, stop=min(start + step, spec.numel))
            digest.update(as_bytes(block).numpy().data)
    return f"sha256:{digest.hexdigest()}"
