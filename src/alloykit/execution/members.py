"""What a caller hands over as "models" -> opened checkpoints with stable, distinct ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import MissingInput
from alloykit.types import Checkpoint, TensorSpec

ID_DIGITS = 8
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def several(models: Iterable[Any] | Mapping[str, Any]) -> Sequence[Any] | Mapping[str, Any]:
    """The models as a list or a mapping, or an error where one model or none was given.

    Args:
        models: A sequence or another iterable of models, or a mapping from name to model.

    Raises:
        MissingInput: No models, or a single path, module, tensor or state dict.
    """
    if isinstance(models, Mapping) and any(_is_tensor(value) for value in models.values()):
        raise MissingInput(
            "One state dict was given where several models belong. "
            "Pass a list of state dicts, or a mapping from name to state dict."
        )
    one = (str, Path, nn.Module, torch.Tensor, np.ndarray, Checkpoint)
    if isinstance(models, one) and not isinstance(models, nn.ModuleList):
        what = f"the path {models}" if isinstance(models, str | Path) else type(models).__name__
        raise MissingInput(f"Several models belong here, in a list; one was given: {what}.")
    found = models if isinstance(models, Mapping) else list(models)
    if len(found) == 0:
        raise MissingInput("Combining takes at least two models; none were given.")
    return found


def open_members(
    models: Iterable[Any] | Mapping[str, Any], *, trust_pickle: bool = False
) -> list[Checkpoint]:
    """Open every model, each with an id that does not depend on its position.

    Given names are kept. Files go by their name without its suffix, with as much in front or
    behind as it takes to tell them apart; nameless models in memory go by the start of their
    content's digest.

    Args:
        models: A sequence of models, or a mapping from name to model. A model is anything that
            ``open_checkpoint`` opens.
        trust_pickle: Passed on to ``open_checkpoint``.

    Raises:
        MissingInput: No models, a single one where several belong, or one file twice.
        CheckpointError: A model that cannot be opened.
    """
    models = several(models)
    if isinstance(models, Mapping):
        names: list[str | None] = [str(name) for name in models]
        sources = list(models.values())
    else:
        sources = list(models)
        names = list(file_names(sources))
    return [
        _opened(source, name, trust_pickle) for source, name in zip(sources, names, strict=True)
    ]


def _opened(source: Any, name: str | None, trust_pickle: bool) -> Checkpoint:
    checkpoint = open_checkpoint(source, name=name, trust_pickle=trust_pickle)
    if name is None and not isinstance(source, Checkpoint):
        digest = content_digest(checkpoint).partition(":")[2]
        return open_checkpoint(source, name=f"model {digest[:ID_DIGITS]}")
    return checkpoint if name in (None, checkpoint.id) else Named(checkpoint, str(name))


@dataclass(frozen=True)
class Named:
    """An open checkpoint under another name."""

    inner: Checkpoint
    id: str

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text that the file carries."""
        return self.inner.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the open checkpoint."""
        return tuple(getattr(self.inner, "notes", ()))

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape, dtype, place; reads no tensor data."""
        return self.inner.specs()

    def read(self, name: str, *, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The tensor of that name; with a range, the flat elements ``start`` to ``stop``."""
        return self.inner.read(name, start=start, stop=stop)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def file_names(sources: Sequence[Any]) -> list[str | None]:
    """The shortest names that tell the files apart; None for what is not a file."""
    paths = [_absolute(source) if isinstance(source, str | Path) else "" for source in sources]
    files = Counter(filter(None, paths))
    twice = sorted(path for path, times in files.items() if times > 1)
    if twice:
        raise MissingInput(
            f"Given twice: {', '.join(twice)}. Give each file once; weights say how much it counts."
        )
    for depth in range(1, 33):
        for whole in (_without_suffix, str):
            names = {path: _ending(whole(path), depth) for path in files}
            if len(set(names.values())) == len(files):
                return [names.get(path) for path in paths]
    return [path or None for path in paths]


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def _without_suffix(path: str) -> str:
    """run.ckpt -> run, run.ckpt#ema -> run#ema; a folder such as llama-3.1 stays as it is."""
    file, mark, key = (path, "", "") if Path(path).exists() else path.rpartition("#")
    suffix = Path(file).suffix
    return (file.removesuffix(suffix) if suffix.lower() in SUFFIXES else file) + mark + key


def _ending(path: str, depth: int) -> str:
    """The last ``depth`` parts of a path."""
    return "/".join(Path(path).parts[-depth:])
