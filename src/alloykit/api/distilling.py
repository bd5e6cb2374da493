"""The verb distill: what one or several models know -> one student."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alloykit.data.batches import Inputs
from alloykit.data.examples import as_examples
from alloykit.data.splits import OnOverlap
from alloykit.distillation.features import Learner
from alloykit.distillation.mapping import ClassMap
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.store import Keep, StoredOutputs
from alloykit.distillation.student import (
    Distilled,
    Progress,
    learn,
    scores,
    validation_loss,
)
from alloykit.distillation.teacher import (
    Members,
    Weights,
    digest_of,
)
from alloykit.distillation.terms import Losses
from alloykit.evaluation.predicting import predict
from alloykit.training.rows import Rows, hold
from alloykit.training.settings import Training
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
    training: Training | None = None,
    stored: str | Path | None = None,
    keep: Keep = "full",
    augment: Callable[[Inputs], Inputs] | None = None,
    snapshot: str | Path | None = None,
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
        training: Epochs, step size, schedule, patience, seed and the like.
        stored: Folder for the teacher's outputs: a second run of the same data and teacher, or one
            after a crash, reads them. By default in memory, or inside ``snapshot``.
        keep: "full" (float32), "half" (float16 logarithms), or how many of the best classes to
            keep, with the mass of all others.
        augment: Changes the inputs of each batch.
        snapshot: Folder to go on from after an interruption, to the same weights bit for bit.
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
        DataError: Teachers with other classes, a split that is too small, a loss that became NaN.
        OutputExists: ``stored`` or ``snapshot`` holds something else; nothing is replaced.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
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
        objective, teachers, layers=layers, weights=weights, stored=stored, augment=augment
    )
    settings = training or Training()
    examples, labelled = training_examples(train, task)
    if objective.needs_labels and not labelled:
        raise MissingInput(objective.missing_labels())
    held_out = None if validation is None else as_examples(validation, "validation")
    learner = Learner(copy.deepcopy(student), layers[0] if layers else "")
    shape = student_shape(learner.student, examples.inputs_sample(), task)
    objective.student_form = shape.form
    examples = checked_splits(
        examples,
        held_out,
        labelled=labelled,
        task=task,
        classes=shape.classes,
        on_overlap=on_overlap,
    )
    teacher = prepared_teacher(
        teachers,
        examples,
        classes=shape.classes,
        task=task,
        weights=weights,
        mapping=mapping,
        validation=held_out,
    )
    features = None
    if layers is not None:
        features = prepared_features(
            learner, teachers, layers[1], examples.inputs_sample(), objective, settings.seed
        )
    facts = {"loss": objective.extra_repr(), "examples": len(examples), **_before(learner, teacher, held_out, task)}
    identity = {
        "data": examples.digest,
        "student": digest_of(learner),
        "teacher": teacher.identity if isinstance(teacher, StoredOutputs) else teacher.identity(),
        "keep": keep,
        "loss": objective.extra_repr(),
        "layers": list(layers or ()),
        "augment": None if augment is None else getattr(augment, "__qualname__", repr(augment)),
        "validation": None if held_out is None else held_out.digest,
    }
