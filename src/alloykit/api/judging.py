"""The verbs that judge: inspect, diagnose, compare; and methods, which lists what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.api.inputs import Models, as_federation, as_training, named, opened_base, sources_of
from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.comparison.comparing import Comparison, Progress, run_comparison
from alloykit.comparison.diagnosis import diagnose_members
from alloykit.comparison.inspection import Inspection, inspect_checkpoints
from alloykit.comparison.report.data import Barrier
from alloykit.comparison.setting import Member, Setting, apart, leaked, source_of
from alloykit.comparison.study import default_metric
from alloykit.data.examples import as_examples
from alloykit.data.splits import OnOverlap, check_splits, overlap_notes
from alloykit.errors import MissingInput
from alloykit.evaluation.freezing import frozen_view
from alloykit.evaluation.metrics import Metric, metric
from alloykit.execution.members import open_members
from alloykit.federation.settings import Federation
from alloykit.registry import (
    Entry,
    aggregators,
    distillation_losses,
    ensemble_rules,
    fusion_heads,
    merge_methods,
    soups,
)
from alloykit.training.settings import Training
from alloykit.types import Task


def inspect(
    models: Models, *, base: Any = None, values: bool = True, trust_pickle: bool = False
) -> Inspection:
    """Answer from the tensors alone whether models can be combined, and how far apart they are.

    Args:
        models: As in ``merge``; files are read piece by piece.
        base: The model that they were fine-tuned from: angles and signs are then those of the
            task vectors.
        values: Whether to read the tensors; without, only names, shapes and dtypes are compared.
        trust_pickle: As in ``merge``.
    """
    origin = opened_base(base, trust_pickle)
    members = open_members(models, trust_pickle=trust_pickle)
    return inspect_checkpoints(members, origin, values=values)


def diagnose(
    members: Mapping[str, nn.Module] | Sequence[nn.Module],
    *,
    validation: Any,
    task: Task = "classification",
    batch_norm: Any = None,
) -> list[Barrier]:
    """Walk the straight line between members, and say whether averaging them will work.

    Args:
        members: Modules; those with the same tensors are joined two by two.
        validation: Data to measure the loss on (at most 2,000 examples are used).
        task: How outputs and targets are read.
        batch_norm: Data to re-estimate BatchNorm statistics on; by default validation's inputs.
    """
    examples = as_examples(validation, "validation")
    setting = Setting(
        members=tuple(Member(name, frozen_view(module)) for name, module in named(members).items()),
        validation=examples,
        test=examples,
        task=task,
        metric=metric(default_metric(task)),
        batch_norm=examples if batch_norm is None else as_examples(batch_norm, "train"),
    )
    return diagnose_members(setting, most_pairs=None)


def compare(
    members: Models,
    *,
    validation: Any,
    test: Any,
    train: Any = None,
    training: Training | Mapping[str, Any] | None = None,
    student: Callable[[], nn.Module] | None = None,
    partitions: Mapping[str, Any] | None = None,
    federation: Federation | Mapping[str, Any] | None = None,
    architecture: Callable[[], nn.Module] | None = None,
    base: Any = None,
    task: Task = "classification",
    measure: str | Callable[..., float] | Metric | None = None,
    higher_is_better: bool | None = None,
    candidates: Sequence[str] | None = None,
    ordered: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    on_overlap: OnOverlap = "error",
    seed: int = 0,
    resamples: int = 1000,
    batch_size: int = 256,
    title: str = "Comparison",
    progress: Progress | None = None,
) -> Comparison:
    """Try every way of combining that applies, and say which is worth shipping.

    Validation chooses, test reports once. Each row carries its metrics with intervals, the paired
    gain over the best single member, and its costs; what does not apply says why.

    Args:
        members: Modules by name or in order; or checkpoints, with ``architecture``.
        validation: The split that chooses: (inputs, targets) arrays, a Dataset, a DataLoader, or a
            list of batches.
        test: The split that reports, in the same forms.
        train: What the members were trained on, or such data. Its inputs re-estimate BatchNorm
            statistics (by default validation's do), students and retrained models learn from it,
            and validation examples that are also in it are reported.
        training: How students and retrained models learn: a ``Training``, or a mapping of its
            settings such as {"epochs": 30}; by default none is trained.
        student: Builds students and retrained models of another architecture; by default they
            are built anew like the first of the members that share one.
        partitions: Client -> a split of its own that never leaves it, for rounds of federated
            learning beside the other candidates.
        federation: How these rounds go: a ``Federation``, or a mapping of its settings such as
            {"rounds": 20}; by default there are none.
        architecture: Builds the module that checkpoints are loaded into.
        base: The model that members were fine-tuned from.
        task: "classification", "regression" or "tokens".
        measure: The main metric: a name, or a callable (outputs, targets) -> number.
        higher_is_better: The direction of a callable.
        candidates: Names of candidates or methods to try; None tries all.
        ordered: Whether the members are checkpoints of one run, oldest first.
        output: Folder for ``rows.jsonl`` and ``report.html``. A comparison interrupted there goes
            on where it stopped.
        overwrite: Start anew in a folder that holds another comparison.
        on_overlap: "error", "drop" (from validation) or "allow" for examples in both splits.
        seed: Of the bootstrap.
        resamples: Bootstrap resamples.
        batch_size: For splits given as arrays or datasets.
        title: What the report calls it.
        progress: Called before each piece of work.

    Returns:
        Rows, recommendation and ``best``, which has ``save(path)``.

    Raises:
        MissingInput: Fewer than two members.
        DataError: Splits that are empty, overlap or do not fit the task.
    """
    given = [
        as_examples(validation, "validation", batch_size=batch_size),
        as_examples(test, "test", batch_size=batch_size),
    ]
    learning = None if train is None else as_examples(train, "train", batch_size=batch_size)
    if learning is not None and training is not None:
        given.insert(0, learning)
    checked = check_splits(given, task=task, classes=None, on_overlap=on_overlap)
    learning = checked[0] if len(checked) == 3 else learning
    rounds = None if federation is None else as_federation(federation)
    clients = {
        name: as_examples(split, "train", batch_size=batch_size)
        for name, split in (partitions or {}).items()
    }
    if rounds is not None:
        clients = apart(clients, checked[-2:], task=task, on_overlap=on_overlap)
    setting = Setting(
        members=tuple(_members(members, architecture)),
        validation=checked[-2],
        test=checked[-1],
        task=task,
        metric=metric(
            measure or default_metric(task), higher_is_better=higher_is_better, task=task
        ),
        batch_norm=learning or checked[-2],
        base_source=source_of(base),
        base=open_checkpoint(base) if base is not None else None,
        ordered=ordered,
        train=learning,
        training=None if training is None else as_training(training),
        student=student,
        partitions=clients,
        federation=rounds,
        leaked=leaked(learning, checked[-2]),
        seed=seed,
        resamples=resamples,
        title=title,
        notes=overlap_notes(given, checked, on_overlap),
    )
    folder = Path(output) if output is not None else None
    found = run_comparison(
        setting, wanted=candidates, folder=folder, overwrite=overwrite, progress=progress
    )
    if folder is not None:
        found.report(folder / "report.html", overwrite=True)
    return found


def methods() -> list[dict[str, str]]:
    """Everything that is registered, by sort: its name, summary, parameters, needs and paper."""
    return [
        {
            "sort": registry.sort,
            "name": entry.name,
            "summary": entry.summary,
            "parameters": ", ".join(str(parameter) for parameter in entry.parameters.values()),
            "needs": ", ".join(_needs(entry)),
            "paper": str(entry.contract.get("paper", "")),
        }
        for registry in (
            merge_methods,
            ensemble_rules,
            soups,
            fusion_heads,
            distillation_losses,
            aggregators,
        )
        for entry in registry.entries()
    ]


def _needs(entry: Entry) -> list[str]:
    needs = set(entry.contract.get("needs", ()))
    return sorted(needs | ({"validation"} if entry.contract.get("fits") else set()))


def _members(models: Models, architecture: Callable[[], nn.Module] | None) -> list[Member]:
    given = models if isinstance(models, str | Path) else sources_of(models)
    if all(isinstance(model, nn.Module) for model in given):
        return [Member(name, frozen_view(module)) for name, module in named(models).items()]
    if architecture is None:
        raise MissingInput(
            "Checkpoints cannot be run as they are: pass architecture=, a callable that builds "
            "the module they belong to, or give modules."
        )
    found = []
    for checkpoint, source in zip(open_members(models), given, strict=True):
        with torch.random.fork_rng():
            module = architecture()
        load_state(module, state_dict(checkpoint))
        found.append(Member(checkpoint.id, module.eval(), source_of(source)))
    return found
