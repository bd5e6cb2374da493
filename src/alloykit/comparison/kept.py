"""What candidates learned: trained tensors, in memory or as files beside the rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.loading import state_dict
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import write_safetensors
from alloykit.errors import AlloyError, CheckpointError

FOLDER = "trained"


class Kept:
    """Trained tensors by candidate, so that a row's model can be rebuilt without training again.

    Args:
        folder: Of the comparison; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._memory: dict[str, Mapping[str, Tensor]] = {}

    def put(self, candidate: str, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Keep a candidate's tensors; returns what finds them again, for its recipe."""
        copied = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        checkpoint = MemoryCheckpoint(copied, id=candidate)
        found = {"name": _file_name(candidate), "digest": content_digest(checkpoint)}
        if self._folder is None:
            self._memory[found["name"]] = copied
            return found
        self._folder.mkdir(parents=True, exist_ok=True)
        specs = checkpoint.specs()
        write_safetensors(
            self._folder / found["name"],
            specs,
            ((name, checkpoint.read(name)) for name in specs),
            metadata={"alloykit.candidate": candidate},
            overwrite=True,
        )
        return found

    def get(self, reference: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors that ``put`` kept.

        Raises:
            CheckpointError: They are gone, or are not those any more.
        """
        name = reference["name"]
        if self._folder is None:
            if name not in self._memory:
                raise CheckpointError(f"What {name} learned was kept in memory, and is gone.")
            return dict(self._memory[name])
        checkpoint = open_checkpoint(self._folder / name)
        if content_digest(checkpoint) != reference["digest"]:
            raise CheckpointError(
                f"{self._folder / name} is not what the comparison wrote there. Compare again."
            )
        return state_dict(checkpoint)

    def has(self, reference: Mapping[str, str]) -> bool:
        """Whether ``get`` would find them."""
        try:
            self.get(reference)
        except AlloyError:
            return False
        return True


def _file_name(candidate: str) -> str:
    """A file name that differs between candidates and holds nothing odd."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", candidate).strip("-").lower()[:80]
    # Different candidates may read alike without their signs.
    mark = hashlib.blake2b(candidate.encode(), digest_size=4).hexdigest()
    return f"{words}-{mark}.safetensors"
