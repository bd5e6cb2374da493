"""The verb distill: what one or several models know -> one student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.api.inputs import as_training
from alloykit.data.batches import Inputs
from alloykit.data.splits import OnOverlap
from alloykit.distillation.checking import check_options
from alloykit.distillation.mapping import ClassMap
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.preparing import (
    Prepared,
    asked_online,
    columns_of,
    prepared,
)
from alloykit.distillation.store import Keep, StoredOutputs
from alloykit.distillation.student import (
    Distilled,
    Knowledge,
    Progress,
    answers,
    learn,
    validation_score,
)
from alloykit.distillation.teacher import Members, Teacher, Weights
from alloykit.distillation.terms import Losses
from alloykit.errors import DataError
from alloykit.evaluation.predicting import predict
from alloykit.evaluation.scoring import scores
from alloykit.training.rows import Columns, Rows, hold
from alloykit.training.settings import Training, check_patience
from alloykit.types import Task


def distill(
    student: nn.Module,
    teachers: Members | Tensor | StoredOutputs,
    *,
    train: Any,
    validation: Any = None,
    loss: Losses = None,
    temperature: float = 2.0,
    alpha: float = 0.5,
    weights: Weights = None,
    task: Task = "classification",
    training: Training | Mapping[str, Any] | None = None,
    stored: str | Path | None = None,
    keep: Keep = "full",
    augment: Callable[[Inputs], Inputs] | None = None,
    snapshot: str | Path | None = None,
    every: float = 60.0,
    mapping: ClassMap | Mapping[str, ClassMap] | None = None,
    layers: tuple[str, str] | None = None,
    label_smoothing: float = 0.0,
    on_overlap: OnOverlap = "error",
    accelerator: Any = None,
    progress: Progress | None = None,
    **parameters: Any,
) -> Distilled:
    """Train a student on what one or several teachers say, with labels or without.

    loss = (1 - alpha) x soft loss (student, teacher) + alpha x hard loss (student, labels)

    Use it when a combination is good but too large to ship, when models of different
    architectures are to become one, or when a central model (a weight average, a pretrained one)
    is to be updated from what an ensemble predicts. The student given is left as it is: a copy is
    trained and returned. Teachers are never changed. Their outputs are computed once, unless
    inputs are augmented: then the teacher sees the same augmented inputs in every step.

    Args:
        student: Any module, blank or trained. A single output per example is a logit.
        teachers: A module (a model, an ensemble, a fusion), several by name or in order, or the
            outputs themselves, in the order of ``train``: a tensor, or stored ones.
        train: (inputs, targets) arrays, a Dataset, a DataLoader or a list of batches; or inputs
            alone, where alpha is 0.
        validation: Labelled data in the same forms. It chooses the best weights, by the task's
            loss, and the scores reported; without it the last weights are returned.
        loss: A registered distillation loss, or several with weights, as in ``{"kl": 1, "hint":
            10}``. By default "kl", and "values" for regression.
        temperature: T > 0, for losses that have one.
        alpha: Weight of the hard loss, in [0, 1]; 0 needs no labels.
        weights: How several teachers count: numbers by hand; a metric's name (by their scores on
            ``validation``); "confidence" (on each example anew); "vote" (hard pseudo-labels). By
            default all the same.
        task: "classification", "regression" or "tokens" (one label per position, -100 where none
            counts).
        training: A ``Training``, or a mapping of its settings: epochs, step size, patience ...
        stored: Folder for the teacher's outputs: a second run of the same data and teacher, or one
            after a crash, reads them. By default in memory, or inside ``snapshot``.
        keep: "full" (float32), "half" (float16 logarithms), or how many of the best classes to
            keep, with the mass of all others.
        augment: Changes the inputs of each batch.
        snapshot: Folder to go on from after an interruption, to the same weights bit for bit.
        every: Seconds between two snapshots within an epoch; each epoch ends with one anyway.
        mapping: Where a teacher's classes differ: for each of its outputs the number of the
            student's class, or None; one list for all, or one per teacher by name.
        layers: The student's and the teacher's layer that losses of features compare.
        label_smoothing: Of the hard loss, in [0, 1).
        on_overlap: "error", "drop" (from ``train``) or "allow" for examples in both splits.
        accelerator: An ``accelerate.Accelerator``, for several GPUs.
        progress: Called with (what, done, in all) while the teacher runs and after each step.
        **parameters: The soft loss's own.

    Raises:
        InvalidParameter: Numbers outside their range, unknown layers, options that exclude each
            other.
        MissingInput: Labels, layers or validation data are needed.
        DataError: Teachers with other classes, a split that is too small; a loss that became NaN:
            the error's attribute ``student`` then holds the best weights so far.
        OutputExists: ``stored`` or ``snapshot`` holds something else; nothing is replaced.

    Example:
        >>> data = (torch.randn(64, 4), torch.randint(3, (64,)))
        >>> found = distill(nn.Linear(4, 3), [nn.Linear(4, 3), nn.Linear(4, 3)], train=data)
        >>> found.facts["loss"]
        'soft 0.5 x kl(T=2) + hard 0.5 x cross-entropy'
    """
    objective = DistillationLoss(
        loss,
        temperature=temperature,
        alpha=alpha,
        task=task,
        label_smoothing=label_smoothing,
        **parameters,
    )
    check_options(
        objective,
        teachers,
        layers=layers,
        weights=weights,
        stored=stored,
        keep=keep,
        augment=augment,
        progress=progress,
        snapshot=snapshot,
        every=every,
    )
    settings = as_training(training)
    check_patience(settings, validation is not None)
    run = prepared(
        student,
        teachers,
        objective,
        train=train,
        validation=validation,
        task=task,
        weights=weights,
        mapping=mapping,
        layers=layers,
        on_overlap=on_overlap,
        seed=settings.seed,
    )
    identity = {**run.identity(), "keep": keep, "augment": _name_of(augment)}
    facts = {"loss": objective.extra_repr(), "examples": len(run.examples), **_scores_before(run)}
    began = time.monotonic()
    columns: dict[str, Columns] = {}
    if augment is None:
        folder = stored or (None if snapshot is None else Path(snapshot) / "teacher")
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            columns = columns_of(run, folder=folder and Path(folder), keep=keep, progress=progress)
    middle = time.monotonic()
    try:
        history = learn(
            run.learner,
            _rows(run, columns, augment),
            objective,
            settings,
            knowledge=Knowledge()
            if augment is None
            else asked_online(run, _device(run, accelerator)),
            validation=None if run.validation is None else validation_score(run.validation, task),
            snapshot=None if snapshot is None else Path(snapshot),
            identity=identity,
            every=every,
            accelerator=accelerator,
            progress=progress,
        )
    except DataError as error:
        # The copy was ours: without it the best weights so far would be lost.
        error.student = run.learner.close()  # type: ignore[attr-defined]
        raise
    facts["seconds"] = {"teacher": middle - began, "training": time.monotonic() - middle}
    trained = run.learner.close()
    facts["student"] = _scores(trained, run)
    return Distilled(trained, history, facts)


def _rows(
    run: Prepared, columns: Mapping[str, Columns], augment: Callable[[Inputs], Inputs] | None
) -> Rows:
    """The data of the run; labels that nothing looks at would only weigh its batches."""
    held = hold(run.examples)
    wanted = run.labelled and (run.loss.needs_labels or run.task == "tokens" or _asked(run))
    return Rows(held.inputs, held.targets if wanted else None, columns, augment)


def _asked(run: Prepared) -> bool:
    return isinstance(run.teacher, Teacher) and run.teacher.uses_labels


def _scores_before(run: Prepared) -> dict[str, Any]:
    """The validation scores of the teacher, and of the student as it came."""
    found: dict[str, Any] = {"before": _scores(run.learner, run), "teacher": None}
    if run.validation is not None and isinstance(run.teacher, Teacher):
        said = answers(run.teacher, run.validation)
        found["teacher"] = scores(said, run.validation, run.task)
    return found


def _scores(model: nn.Module, run: Prepared) -> dict[str, float] | None:
    if run.validation is None:
        return None
    return scores(predict(model, run.validation), run.validation, run.task)


def _device(run: Prepared, accelerator: Any) -> torch.device:
    if accelerator is not None:
        return torch.device(accelerator.device)
    return next((p.device for p in run.learner.parameters()), torch.device("cpu"))


def _name_of(augment: Any) -> str | None:
    return None if augment is None else getattr(augment, "__qualname__", type(augment).__name__)
