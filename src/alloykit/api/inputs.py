"""What callers hand to the verbs: models in any form, bases, weights by name, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.evaluation.freezing import require_modules
from alloykit.federation.settings import Federation
from alloykit.training.settings import Training
from alloykit.types import Checkpoint

Models = Sequence[Any] | Mapping[str, Any]


def is_path(model: Any) -> bool:
    """Whether a model was given as the path of a file."""
    return isinstance(model, str | Path)


def sources_of(models: Models) -> list[Any]:
    """The models without their names."""
    return list(models.values() if isinstance(models, Mapping) else models)


def named(members: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The members by name; nameless ones are numbered."""
    if isinstance(members, Mapping):
        return dict(members)
    return {f"member {number}": member for number, member in enumerate(members, start=1)}


def named_modules(
    members: Mapping[str, nn.Module] | Sequence[nn.Module],
) -> dict[str, nn.Module]:
    """Members that can be run, by name.

    Raises:
        InvalidParameter: Something else, or modules on the meta device; all are listed.
    """
    several = isinstance(members, Mapping | Sequence | nn.ModuleList | nn.ModuleDict)
    if not several or isinstance(members, str | nn.Sequential):
        raise InvalidParameter(
            "'members' must be several modules, in order or by name. Got "
            f"a {type(members).__name__}."
        )
    found = dict(members.items()) if isinstance(members, nn.ModuleDict) else named(members)
    require_modules(found)
    return found


def opened_base(base: Any, trust_pickle: bool) -> Checkpoint | None:
    """The base as a checkpoint, where there is one."""
    if base is None:
        return None
    name = None if is_path(base) else "base"
    return open_checkpoint(base, name=name, trust_pickle=trust_pickle)


def target_file(output: str | Path) -> Path:
    """The file to write; another suffix would promise another format."""
    target = Path(output).expanduser()
    if target.suffix != ".safetensors":
        raise InvalidParameter(
            f"{output} would be a safetensors file: give it a name that ends in .safetensors."
        )
    return target


def target_path(output: str | Path, max_shard_size: int | None) -> Path:
    """The file to write; with shards the folder."""
    if max_shard_size is None:
        return target_file(output)
    target = Path(output).expanduser()
    if target.suffix == ".safetensors":
        raise InvalidParameter(
            f"{output} would be a folder of shards: give it a name without .safetensors, or "
            "leave out max_shard_size."
        )
    return target


def files_of(sources: Sequence[Any]) -> list[Path]:
    """The files and folders that models were read from, to be kept from being written over."""
    paths = [str(source) for source in sources if is_path(source)]
    entries = [path.rpartition("#")[0] for path in paths if "#" in path]
    return [Path(path).expanduser() for path in (*paths, *entries)]


def in_order(
    weights: Sequence[float] | Mapping[str, float] | None, checkpoints: Sequence[Checkpoint]
) -> Sequence[float] | None:
    """Weights in the order of the checkpoints, from weights in that order or by name."""
    if not isinstance(weights, Mapping):
        return weights
    names = [checkpoint.id for checkpoint in checkpoints]
    by_name = {str(name): weight for name, weight in weights.items()}
    if set(by_name) != set(names):
        raise InvalidWeights(
            f"Weights are for {', '.join(by_name)}; the models are {', '.join(names)}."
        )
    return [by_name[name] for name in names]


def as_federation(given: Federation | Mapping[str, Any] | None) -> Federation:
    """How rounds go: as given, of a mapping of its settings, or the defaults."""
    if given is None:
        return Federation()
    return given if isinstance(given, Federation) else Federation.of(given)


def as_training(given: Training | Mapping[str, Any] | None) -> Training:
    """How to train: as given, of a mapping of its settings, or the defaults."""
    if given is None:
        return Training()
    return given if isinstance(given, Training) else Training.of(given)
