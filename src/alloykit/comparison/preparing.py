"""From a checked study file to opened models and data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.checkpoints.exporting import load_exported
from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.comparison.client_data import partitions_of
from alloykit.comparison.federation_spec import settings_of
from alloykit.comparison.setting import Member, Setting, apart, leaked
from alloykit.comparison.study import MemberSpec, Study, default_metric
from alloykit.data.examples import Examples
from alloykit.data.importing import import_object
from alloykit.data.sources import load_split
from alloykit.data.splits import check_splits, overlap_notes
from alloykit.ensembling.adapting import adapted
from alloykit.errors import AlloyError, InvalidStudy
from alloykit.evaluation.metrics import metric
from alloykit.training.settings import Training


def prepare(study: Study, folder: Path) -> Setting:
    """Load what a study names: models and data, checked.

    Args:
        study: The checked study.
        folder: Where its relative paths start, and where its own modules are importable from.
    """
    chosen = metric(study.metric or default_metric(study.task), task=study.task)
    members = tuple(_member(spec, study, folder) for spec in study.members)
    splits, notes = _splits(study, folder)
    training = None if study.training is None else Training(**study.training.model_dump())
    base = (
        open_checkpoint(folder / study.base, trust_pickle=study.trust_pickle)
        if study.base
        else None
    )
    return Setting(
        members=members,
        validation=splits["validation"],
        test=splits["test"],
        task=study.task,
        metric=chosen,
        batch_norm=splits.get("train", splits["validation"]),
        base=base,
        base_source=str(folder / study.base) if study.base else "in memory",
        ordered=study.ordered,
        train=splits.get("train"),
        training=training,
        student=_student(study, folder),
        partitions=_partitions(study, folder, [splits["validation"], splits["test"]]),
        federation=None if study.federation is None else settings_of(study.federation),
        unlabelled=_unlabelled(study, folder, [splits["validation"], splits["test"]]),
        leaked=leaked(splits.get("train"), splits["validation"]),
        seed=study.seed,
        resamples=study.resamples,
        title=study.title,
        notes=notes,
    )


def _splits(study: Study, folder: Path) -> tuple[dict[str, Examples], tuple[str, ...]]:
    given = {
        name: load_split(spec, name, folder, batch_size=study.batch_size)
        for name in ("train", "validation", "test")
        if (spec := getattr(study.data, name)) is not None
    }
    # What only re-estimates BatchNorm statistics may overlap; what is learned from may not.
    names = ["train"] * (study.training is not None and "train" in given) + ["validation", "test"]
    judged = [given[name] for name in names]
    checked = check_splits(
        judged, task=study.task, classes=study.classes, on_overlap=study.on_overlap
    )
    splits = {**given, **dict(zip(names, checked, strict=True))}
    return splits, overlap_notes(judged, checked, study.on_overlap)


def _partitions(study: Study, folder: Path, judging: list[Examples]) -> dict[str, Examples]:
    """The clients' data, where rounds are asked for."""
    if study.federation is None:
        return {}
    given = partitions_of(study, folder)
    return apart(given, judging, task=study.task, on_overlap=study.on_overlap)


def _unlabelled(study: Study, folder: Path, judging: list[Examples]) -> Examples | None:
    """The server's own data, where rounds are asked for and it has any."""
    if study.federation is None or study.data.unlabelled is None:
        return None
    given = load_split(study.data.unlabelled, "train", folder, batch_size=study.batch_size)
    return apart({"unlabelled": given}, judging, task=study.task, on_overlap=study.on_overlap)[
        "unlabelled"
    ]


def _student(study: Study, folder: Path) -> Callable[[], nn.Module] | None:
    spec = study.student
    if spec is None:
        return None
    return partial(built_module, spec.architecture, spec.arguments, folder, study.trust_pickle)


def _member(spec: MemberSpec, study: Study, folder: Path) -> Member:
    architecture = spec.architecture or study.architecture or ""
    arguments = spec.arguments or study.arguments
    source = folder / spec.checkpoint if spec.checkpoint else folder / architecture
    name = spec.name or source.stem
    try:
        module = built_module(architecture, arguments, folder, study.trust_pickle)
        if spec.checkpoint:
            checkpoint = open_checkpoint(source, trust_pickle=study.trust_pickle)
            load_state(module, state_dict(checkpoint))
        module = _adapted(module, spec, study)
    except AlloyError as error:
        raise type(error)(f"Member {name}: {error}") from None
    return Member(name, module.eval(), str(source))


def _adapted(module: nn.Module, spec: MemberSpec, study: Study) -> nn.Module:
    """The member behind its own normalisation and class map, where it has any."""
    transforms = {"mean": spec.mean, "std": spec.std, "size": spec.size}
    given: dict[str, Any] = {key: value for key, value in transforms.items() if value is not None}
    if spec.classes is not None:
        given |= {"classes": spec.classes, "common": study.classes}
    return adapted(module, **given) if given else module


def built_module(
    architecture: str, arguments: Mapping[str, Any], folder: Path, trust_pickle: bool
) -> nn.Module:
    """The module that ``package.module:callable`` builds, or that a .pt2 file of torch holds.

    Args:
        architecture: Which of them.
        arguments: What the callable is called with.
        folder: Where relative paths start, and where modules are importable from.
        trust_pickle: As in ``merge``.
    """
    if architecture.endswith(".pt2"):
        return load_exported(folder / architecture, trust_pickle=trust_pickle)
    build: Callable[..., Any] = import_object(architecture, folder)
    if not callable(build):
        raise InvalidStudy(f"{architecture} is a {type(build).__name__}, and builds no model.")
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise InvalidStudy(f"{architecture} does not take these arguments: {error}.") from None
    with torch.random.fork_rng():
        module = build(**arguments)
    if not isinstance(module, nn.Module):
        raise InvalidStudy(f"{architecture} gave a {type(module).__name__}, not an nn.Module.")
    return module
