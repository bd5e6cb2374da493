"""Stored teacher outputs in a folder: raw memory-mapped files, and what they are of."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from alloykit.checkpoints.strict_json import differing, parse
from alloykit.checkpoints.writing import atomic_write, reserve, sync_folder
from alloykit.errors import CheckpointError, OutputExists, listing
from alloykit.numerics import is_whole

META = "teacher.json"
FORMAT = 1
PIECE = 1 << 22
"""Bytes that are digested at a time."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int32": torch.int32}

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class StoredFolder:
    """The folder of one store: written in pieces, each safe on disk before it counts.

    Args:
        path: The folder; made where it does not exist.
        identity: What is stored, as JSON values: another identity is refused.
        total: Examples in all.

    Example:
        >>> import tempfile
        >>> place = StoredFolder(Path(tempfile.mkdtemp()) / "new", {"data": "a"}, 2)
        >>> tensors = place.created({"outputs": ((2, 1), torch.float32)})
        >>> tensors["outputs"][:1] = 7
        >>> place.save(1)
        >>> place.opened()[0]
        1
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], total: int) -> None:
        self.path = path
        self.identity = dict(identity)
        self.total = total
        self._arrays: dict[str, np.memmap[Any, Any]] = {}

    def opened(self) -> tuple[int, dict[str, Tensor]]:
        """Examples that are safe on disk, and the tensors; (0, {}) where there is nothing yet.

        Raises:
            OutputExists: The folder holds something else; all differences are listed.
            CheckpointError: Its files are damaged.
        """
        meta = self._meta()
        if meta is None:
            return 0, {}
        wrong = [
            f"{' '.join(path)}: {_brief(there)} there, {_brief(now)} now"
            for path, there, now in differing(meta["identity"], self.identity)
        ]
        if meta["total"] != self.total:
            wrong.append(f"examples: {meta['total']} there, {self.total} now")
        if wrong:
            raise OutputExists(
                f"{self.path} holds a teacher's outputs that are not these:\n{listing(wrong)}\n"
                "Give another folder, or remove this one."
            )
        shapes = {n: (tuple(s), DTYPES[d]) for n, (s, d) in meta["tensors"].items()}
        # A finished store may lie in a read-only place, and nobody's change may reach it.
        finished = meta["rows"] == self.total
        found = self._mapped(shapes, "c" if finished else "r+")
        if finished and meta.get("digest") != self._digest(meta["tensors"]):
            raise CheckpointError(
                f"The teacher's outputs in {self.path} are damaged: they do not match their "
                "digest. Remove the folder, and compute the outputs again."
            )
        return meta["rows"], found

    def created(self, shapes: Shapes) -> dict[str, Tensor]:
        """New files with room for everything, so that a full disk is known before any work."""
        for name in shapes:
            self._refuse_link(name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name, (shape, dtype) in shapes.items():
                with self._file(name).open("wb") as file:
                    reserve(file.fileno(), math.prod(shape) * dtype.itemsize)
            sync_folder(self.path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"The teacher's outputs cannot be stored in {str(self.path)!r}: {why}."
            ) from error
        return self._mapped(shapes)

    def save(self, rows: int) -> None:
        """Make the first ``rows`` examples a point to resume from."""
        for array in self._arrays.values():
            array.flush()
        tensors = {
            name: [list(array.shape), str(array.dtype)] for name, array in self._arrays.items()
        }
        meta = {
            "format": FORMAT,
            "identity": self.identity,
            "total": self.total,
            "rows": rows,
            "tensors": tensors,
            "digest": self._digest(tensors) if rows == self.total else "",
        }
        with atomic_write(self.path / META, overwrite=True) as file:
            file.write(json.dumps(meta, indent=1).encode())

    def _digest(self, tensors: Mapping[str, Any]) -> str:
        """Of all bytes, and of how they are read."""
        found = hashlib.blake2b(json.dumps(tensors, sort_keys=True).encode(), digest_size=16)
        for name in sorted(self._arrays):
            flat = self._arrays[name].reshape(-1).view(np.uint8)
            for start in range(0, flat.size, PIECE):
                found.update(flat[start : start + PIECE].data)
        return found.hexdigest()

    def _refuse_link(self, name: str) -> None:
        if self._file(name).is_symlink():
            raise OutputExists(
                f"{self._file(name)} is a link: writing would change what it points to. Remove it, "
                "or give another folder."
            )

    def _file(self, name: str) -> Path:
        return self.path / f"teacher_{name}.bin"

    def _mapped(self, shapes: Shapes, mode: Literal["r+", "c"] = "r+") -> dict[str, Tensor]:
        for name, (shape, dtype) in shapes.items():
            if mode == "r+":
                self._refuse_link(name)
            path, size = self._file(name), math.prod(shape) * dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise CheckpointError(
                    f"{path} is missing or has not the {size} bytes that it should have. "
                    f"Remove the folder {self.path}, and compute the outputs again."
                )
            kind = np.dtype(str(dtype).removeprefix("torch."))
            self._arrays[name] = np.memmap(path, mode=mode, dtype=kind, shape=shape)
        return {name: torch.from_numpy(array) for name, array in self._arrays.items()}

    def _meta(self) -> dict[str, Any] | None:
        path = self.path / META
        try:
            if self.path.exists() and not self.path.is_dir():
                raise CheckpointError(
                    f"The teacher's outputs cannot be stored in {self.path}: it is a file. Name a "
                    "folder."
                )
            if not path.exists():
                return None
            if not path.is_file():
                raise ValueError("it is no file")
            found: dict[str, Any] = parse(path.read_bytes())
            _require_meta(found)
            return found
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} cannot be read: {error}. Remove the folder, and compute the outputs again."
            ) from error


def _require_meta(found: Any) -> None:
    """Refuse anything that ``save`` would not have written."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"it is not of the format {FORMAT} that this version reads (did a later one write it?)"
        )
    total, rows, tensors = (found.get(name) for name in ("total", "rows", "tensors"))
    whole = is_whole(total) and is_whole(rows) and 0 <= rows <= total
    if not whole or not isinstance(tensors, dict) or not isinstance(found.get("identity"), dict):
        raise ValueError("entries are missing or make no sense")
    if not {"outputs"} <= set(tensors) <= {"outputs", "classes"}:
        raise ValueError(f"it names the tensors {', '.join(tensors) or 'none'}")
    for entry in tensors.values():
        shape, dtype = entry if isinstance(entry, list) and len(entry) == 2 else ([], "")
        sizes = isinstance(shape, list) and all(is_whole(size) and size >= 0 for size in shape)
        if not sizes or shape[:1] != [total] or dtype not in DTYPES:
            raise ValueError(f"{entry!r} is no shape and dtype of {total} rows")


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
