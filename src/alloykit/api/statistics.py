"""The verb stats: what merging needs to know of a model on data, kept in a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from alloykit.api.inputs import files_of, is_path, named, target_file
from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import check_target, write_safetensors
from alloykit.data.examples import Examples, as_examples
from alloykit.errors import InvalidParameter, MissingInput, UnknownName, did_you_mean
from alloykit.evaluation.fisher import Labels, fisher_diagonal
from alloykit.evaluation.gram import gram_matrices
from alloykit.evaluation.predicting import unwrapped
from alloykit.soups.regmean_pp import merged_gram_matrices
from alloykit.types import Task

KINDS = ("fisher", "gram")
Progress = Callable[[str, int, int], None]
One = TypeVar("One")
Other = TypeVar("Other")


def stats(
    model: Any,
    data: Any,
    kind: Literal["fisher", "gram"],
    *,
    module: nn.Module | None = None,
    examples: int | None = None,
    task: Task = "classification",
    labels: Labels | None = None,
    seed: int = 0,
    through_merged: bool = False,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    trust_pickle: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Collect what a merge needs to know of a model on data: Fisher diagonals or Gram matrices.

    "fisher": F = E[(∂ log p(y | x) / ∂θ)²] of every parameter, for ``merge(method="fisher")``.
    "gram": Xᵀ·X / n of the inputs of every linear and convolutional layer, for "regmean".

    Use it once for every model with data of its own task; the merge then takes the results as
    ``stats={kind: [one per model]}`` and reads no data.

    Args:
        model: A module; or a checkpoint, with ``module``; or a list or mapping of several, and
            then ``data`` is a list of as many.
        data: Inputs of what the model is for, in any form that ``compare`` takes as a split. No
            labels are needed: any targets will do.
        kind: "fisher" or "gram".
        module: A module of the architecture, where the models are files or state dicts.
        examples: Use that many, evenly spaced; by default all. Some hundred are enough.
        task: How outputs are read, for "fisher".
        labels: "exact" or "sampled", for "fisher"; by default exact, and sampled for tokens.
        seed: Of sampled labels.
        through_merged: For "gram" of several models: collect what every layer sees behind the
            merged layers before it, which makes "regmean" RegMean++.
        parameters: Those of "regmean" for ``through_merged``; the merge must be given the same.
        output: A ``.safetensors`` file to write, or a folder of them for several models.
        overwrite: Whether existing outputs may be replaced.
        trust_pickle: As in ``merge``.
        progress: Called with (what, done, in all).

    Returns:
        Name -> tensor, or the output's path; a list of them for several models.

    Raises:
        UnknownName: Another kind.
        MissingInput: A checkpoint without a module, or not one data set per model.

    Example:
        >>> import torch
        >>> found = stats(nn.Sequential(nn.Linear(2, 1)), (torch.eye(2), [0, 0]), "gram")
        >>> found["0.weight"]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    if kind not in KINDS:
        raise UnknownName(
            f"There are no statistics {kind!r}.{did_you_mean(str(kind), KINDS)} "
            f"There are: {', '.join(KINDS)}."
        )
    if through_merged and kind != "gram":
        raise InvalidParameter("Only Gram matrices are collected through merged layers.")
    several = isinstance(model, list | tuple) or _is_mapping_of_models(model)
    sources = named(model) if several else {"model": model}
    modules = [_module(each, module, trust_pickle) for each in sources.values()]
    splits = [_split(each, examples) for each in (data if several else [data])]
    if len(splits) != len(modules):
        raise MissingInput(
            f"{len(modules)} models and {len(splits)} data sets were given. Give one data set per "
            "model, in the same order."
        )
    targets = _targets(sources, output, several)
    for target in targets:
        check_target(target, overwrite, files_of([*sources.values()]))
    if through_merged:
        found = merged_gram_matrices(modules, splits, progress=progress, **(parameters or {}))
    elif kind == "gram":
        found = [gram_matrices(m, s, progress=progress) for m, s in _pairs(modules, splits)]
    else:
        found = [
            fisher_diagonal(m, s, task=task, labels=labels, seed=seed, progress=progress)
            for m, s in _pairs(modules, splits)
        ]
    every = [_with_ties(tensors, m) for m, tensors in _pairs(modules, found)]
    if output is None:
        return every if several else every[0]
    how: dict[str, Any] = {"kind": kind}
    if through_merged:
        how |= {"parameters": dict(parameters or {}), "through": "merged"}
    if kind == "fisher":
        how |= {"labels": labels or ("sampled" if task == "tokens" else "exact"), "seed": seed}
    for target, tensors, (source, split) in zip(
        targets, every, _pairs(sources.values(), splits), strict=True
    ):
        _write(target, tensors, {**how, **_provenance(source, split)}, overwrite)
    return targets if several else targets[0]


def _pairs(one: Iterable[One], other: Iterable[Other]) -> list[tuple[One, Other]]:
    return list(zip(one, other, strict=True))


def _is_mapping_of_models(model: Any) -> bool:
    """Whether it maps names to models; a state dict maps them to tensors."""
    return isinstance(model, Mapping) and all(
        isinstance(each, nn.Module | Mapping) or is_path(each) for each in model.values()
    )


def _module(source: Any, template: nn.Module | None, trust_pickle: bool) -> nn.Module:
    if isinstance(source, nn.Module):
        return source
    if template is None:
        raise MissingInput(
            "Statistics run the model: pass module=, a module of the checkpoint's architecture."
        )
    loaded = copy.deepcopy(template)
    load_state(loaded, state_dict(open_checkpoint(source, trust_pickle=trust_pickle)))
    return loaded


def _split(data: Any, examples: int | None) -> Examples:
    split = as_examples(data, "train")
    return split if examples is None else split.spread(examples)


def _targets(
    sources: Mapping[str, Any], output: str | Path | None, several: bool
) -> Sequence[Path]:
    if output is None:
        return []
    if not several:
        return [target_file(output)]
    folder = Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    stems = [
        Path(str(s)).stem if is_path(s) else name.replace(" ", "-") for name, s in sources.items()
    ]
    if len(set(stems)) < len(stems):
        stems = [f"{number}-{stem}" for number, stem in enumerate(stems, start=1)]
    return [folder / f"{stem}.safetensors" for stem in stems]


def _with_ties(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The statistics under every name that a parameter has in the model."""
    specs = open_checkpoint(unwrapped(module)).specs()
    found = {specs[name].place: tensor for name, tensor in tensors.items() if name in specs}
    return {
        name: tensors.get(name, found[spec.place])
        for name, spec in specs.items()
        if name in tensors or spec.place in found
    }


def _provenance(source: Any, split: Examples) -> dict[str, Any]:
    in_file = is_path(source) and Path(source).expanduser().exists()
    digest = file_digest(source) if in_file else content_digest(open_checkpoint(source))
    return {
        "alloykit": metadata.version("alloykit"),
        "data": split.digest,
        "examples": len(split),
        "model": digest,
    }


def _write(
    target: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], overwrite: bool
) -> None:
    held = MemoryCheckpoint(tensors, "statistics")
    write_safetensors(
        target,
        held.specs(),
        ((name, held.read(name)) for name in tensors),
        metadata={"alloykit.stats": json.dumps(record, sort_keys=True)},
        overwrite=overwrite,
    )
