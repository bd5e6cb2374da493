"""What a caller hands over as "models" -> opened checkpoints with stable, distinct ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import MissingInput
from alloykit.types import Checkpoint

ID_DIGITS = 8


def open_members(
    models: Sequence[Any] | Mapping[str, Any], *, trust_pickle: bool = False
) -> list[Checkpoint]:
    """Open every model, each with an id that does not depend on its position.

    Given names are kept. Files go by their stem, with as many parent folders in front as it takes
    to tell them apart; nameless models in memory go by the start of their content's digest.

    Args:
        models: A sequence of models, or a mapping from name to model. A model is anything that
            ``open_checkpoint`` opens.
        trust_pickle: Passed on to ``open_checkpoint``.

    Raises:
        MissingInput: No models, or a single state dict where several models belong.
        CheckpointError: A model that cannot be opened.
    """
    if isinstance(models, Mapping) and any(_is_tensor(value) for value in models.values()):
        raise MissingInput(
            "One state dict was given where several models belong. "
            "Pass a list of state dicts, or a mapping from name to state dict."
        )
    if isinstance(models, str | Path) or len(models) == 0:
        given = f"one path ({models})" if isinstance(models, str | Path) else "no models"
        raise MissingInput(f"Combining takes at least two models; {given} was given.")
    if isinstance(models, Mapping):
        names: list[str | None] = [str(name) for name in models]
        sources = list(models.values())
    else:
        sources = list(models)
        names = list(_file_names(sources))
    return [
        _opened(source, name, trust_pickle) for source, name in zip(sources, names, strict=True)
    ]


def _opened(source: Any, name: str | None, trust_pickle: bool) -> Checkpoint:
    checkpoint = open_checkpoint(source, name=name, trust_pickle=trust_pickle)
    if name is None and isinstance(checkpoint, MemoryCheckpoint):
        digest = content_digest(checkpoint).partition(":")[2]
        return open_checkpoint(source, name=f"model {digest[:ID_DIGITS]}")
    return checkpoint


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _file_names(sources: Sequence[Any]) -> list[str | None]:
    """The shortest path endings that tell the files apart; None for what is not a file."""
    paths = [Path(s).expanduser() if isinstance(s, str | Path) else None for s in sources]
    names: list[str | None] = [path and _ending(path, 1) for path in paths]
    depth = 2
    while depth < 32:
        twice = {name for name, n in Counter(filter(None, names)).items() if n > 1}
        clashing = [i for i, name in enumerate(names) if name in twice]
        if not clashing:
            break
        for i in clashing:
            names[i] = _ending(paths[i], depth)  # type: ignore[arg-type]
        depth += 1
    return names


def _ending(path: Path, depth: int) -> str:
    stem = path.with_suffix("") if path.suffix else path
    return "/".join(stem.parts[-depth:])
