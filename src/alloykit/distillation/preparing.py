"""All that a distillation starts from: data, student, teachers, and what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs, forward, placed
from alloykit.data.examples import Examples, as_examples
from alloykit.data.splits import OnOverlap
from alloykit.distillation.checking import checked_splits, student_shape, training_examples
from alloykit.distillation.features import LayerOutput, Learner
from alloykit.distillation.mapping import ClassMap, check_classes, mapped_teachers
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.store import Keep, StoredOutputs, given_outputs, stored_outputs
from alloykit.distillation.student import Knowledge
from alloykit.distillation.teacher import (
    Members,
    Teacher,
    Weights,
    classes_in,
    digest_of,
    named_teachers,
)
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.evaluation.freezing import require_modules
from alloykit.evaluation.predicting import evaluating
from alloykit.training.hardware import trained_parameters
from alloykit.training.rows import Columns
from alloykit.types import Task


@dataclass(frozen=True)
class Prepared:
    """All that a distillation starts from, checked.

    Attributes:
        learner: A copy of the student, and what it needs while it learns.
        loss: What it is trained to do.
        examples: What it learns on.
        labelled: Whether they have labels.
        validation: Held-out examples, where there are some.
        teacher: Frozen models, or their stored outputs.
        features: The teacher's, for losses of features.
        task: What all of them are for.
    """

    learner: Learner
    loss: DistillationLoss
    examples: Examples
    labelled: bool
    validation: Examples | None
    teacher: Teacher | StoredOutputs
    features: LayerOutput | None
    task: Task

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share, as JSON values."""
        known = self.teacher
        return {
            "data": self.examples.digest,
            "student": digest_of(self.learner),
            "teacher": known.identity if isinstance(known, StoredOutputs) else known.identity(),
            "features": None if self.features is None else self.features.identity(),
            "loss": self.loss.extra_repr(),
            "validation": None if self.validation is None else self.validation.digest,
        }


def prepared(
    student: nn.Module,
    teachers: Members | Tensor | StoredOutputs,
    loss: DistillationLoss,
    *,
    train: Any,
    validation: Any,
    task: Task,
    weights: Weights,
    mapping: ClassMap | Mapping[str, ClassMap] | None,
    layers: tuple[str, str] | None,
    on_overlap: OnOverlap,
    seed: int,
) -> Prepared:
    """Check everything that ``distill`` is given, in an order that runs nothing in vain.

    Raises:
        MissingInput: Labels are needed.
        AlloyError: See the parts.
    """
    examples, labelled = training_examples(train)
    if loss.needs_labels and not labelled:
        raise MissingInput(loss.missing_labels())
    held_out = None if validation is None else as_examples(validation, "validation")
    require_modules({"student": student})
    learner = Learner(copy.deepcopy(student), layers[0] if layers else "")
    trained_parameters(learner)
    shape = student_shape(learner.student, examples.inputs_sample(), task)
    loss.student_form = shape.form
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
        sample = examples.inputs_sample()
        features = prepared_features(learner, teachers, layers[1], sample, loss, seed)
    return Prepared(learner, loss, examples, labelled, held_out, teacher, features, task)


def prepared_teacher(
    teachers: Members | Tensor | StoredOutputs,
    examples: Examples,
    *,
    classes: int,
    task: Task,
    weights: Weights = None,
    mapping: ClassMap | Mapping[str, ClassMap] | None = None,
    validation: Examples | None = None,
) -> Teacher | StoredOutputs:
    """The teacher, checked against the student's classes and the data.

    Args:
        teachers: Modules, or outputs.
        examples: What the student learns on.
        classes: Of the student; 0 for regression.
        task: What they are for.
        weights: How several count.
        mapping: Where classes differ.
        validation: For weights by a metric.

    Raises:
        DataError: Other classes than the student's, or outputs of other data.
    """
    if isinstance(teachers, Tensor | StoredOutputs):
        given = given_outputs(teachers, task) if isinstance(teachers, Tensor) else teachers
        given.check_fits(examples)
        found = 0 if given.classes is not None else classes_in(given.outputs)
        if classes and found not in (0, classes):
            raise DataError(
                f"The student has {classes} classes, and the stored outputs have {found}. Store "
                "them from a teacher with a class map (mapping=)."
            )
        return given
    members = named_teachers(teachers)
    if classes:
        members = mapped_teachers(members, mapping, classes)
        check_classes(members, examples.inputs_sample(), classes)
    return Teacher(members, task=task, weights=weights, validation=validation)


def prepared_features(
    learner: Learner,
    teachers: Any,
    layer: str,
    inputs: Inputs,
    loss: DistillationLoss,
    seed: int,
) -> LayerOutput:
    """The teacher's features, and the student's map to their width where one is needed.

    Raises:
        InvalidParameter: Several teachers, or a layer that does not exist.
    """
    members = list(named_teachers(teachers).values())
    if len(members) != 1:
        raise InvalidParameter(
            f"Losses of features take one teacher; {len(members)} were given. Combine them into "
            "one ensemble, and name a layer inside it ('members.0.fc')."
        )
    features = LayerOutput(members[0], layer)
    with evaluating(learner):
        forward(learner, placed(inputs, learner))
    theirs, own = features(inputs), learner.features
    same_width = any(not term.loss.any_width for term in loss.on_features)
    if same_width and own is not None and own.shape != theirs.shape:
        learner.map_to(theirs.shape[1], seed)
    return features


def columns_of(
    run: Prepared,
    *,
    folder: Path | None,
    keep: Keep,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Columns]:
    """What the teacher says on all examples, computed once: the columns that the run reads."""
    found: dict[str, Columns] = {}
    if isinstance(run.teacher, StoredOutputs):
        found |= run.teacher.columns()
    elif run.loss.on_outputs:
        stored = stored_outputs(
            run.teacher,
            run.examples,
            folder=folder,
            keep=keep,
            labels=run.labelled,
            progress=progress,
        )
        found |= stored.columns()
    if run.features is not None:
        place = None if folder is None else folder / "features"
        found["features"] = stored_outputs(
            run.features, run.examples, folder=place, labels=False, progress=progress
        )
    return found


def asked_online(run: Prepared, device: torch.device) -> Knowledge:
    """Teachers that answer in every step, on the student's device."""
    outputs = None
    if run.loss.on_outputs and not isinstance(run.teacher, StoredOutputs):
        outputs = run.teacher.to(device)
    return Knowledge(outputs, None if run.features is None else run.features.to(device))
