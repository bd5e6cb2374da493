"""The run in which a student learns from its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import forward
from alloykit.data.examples import Examples
from alloykit.distillation.features import LayerOutput, Learner
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.teacher import Source, Teacher
from alloykit.errors import DataError
from alloykit.evaluation.predicting import predict
from alloykit.evaluation.scoring import scores
from alloykit.training.history import History
from alloykit.training.loop import Validation, train
from alloykit.training.rows import Part, Rows
from alloykit.training.settings import Training
from alloykit.types import Task

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Distilled:
    """What ``distill`` gives.

    Attributes:
        student: The trained module, in evaluation mode: a copy of the one given.
        history: Loss, validation score and step size of every epoch.
        facts: JSON values: "loss" (as text), "examples", "teacher", "before" and "student" (their
            validation scores by metric, None where there are none), "seconds" ("teacher",
            "training").
    """

    student: nn.Module
    history: History
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Knowledge:
    """Where a batch's teacher outputs and features come from while the student learns.

    What is None is read from the columns "teacher" and "features" of the data.

    Attributes:
        outputs: Answers for a batch of inputs.
        features: Features for a batch of inputs.
    """

    outputs: Teacher | None = None
    features: LayerOutput | None = None


def learn(
    learner: Learner,
    data: Rows,
    loss: DistillationLoss,
    training: Training,
    *,
    knowledge: Knowledge = Knowledge(),
    validation: Validation | None = None,
    snapshot: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    every: float = 60.0,
    accelerator: Any = None,
    progress: Progress | None = None,
) -> History:
    """Train a learner in place on what its teacher says; see ``train`` for the loop.

    Args:
        learner: The student and what it needs while it learns.
        data: Its inputs, labels where there are some, and the columns of a store.
        loss: What it is trained to do.
        training: How.
        knowledge: A teacher that is asked in every step, where inputs are augmented.
        validation: What chooses the best weights.
        snapshot: Folder to go on from after an interruption.
        identity: JSON values that a snapshot must share.
        every: Seconds between snapshots.
        accelerator: An ``accelerate.Accelerator``.
        progress: Called after each step.
    """

    def of_batch(model: nn.Module, part: Part) -> Tensor:
        outputs = forward(model, part.inputs)
        teacher: Tensor | None = part.extra.get("teacher")
        if knowledge.outputs is not None:
            teacher = knowledge.outputs(part.inputs, part.targets)
        features = None
        if learner.features is not None:
            theirs = part.extra.get("features")
            if knowledge.features is not None:
                theirs = knowledge.features(part.inputs)
            if theirs is not None:
                features = (learner.features, theirs)
        classes = part.extra.get("classes")
        found: Tensor = loss(outputs, teacher, part.targets, classes=classes, features=features)
        return found

    return train(
        learner,
        data,
        of_batch,
        training,
        validation=validation,
        progress=progress,
        snapshot=snapshot,
        identity=identity,
        every=every,
        accelerator=accelerator,
    )


def validation_score(examples: Examples, task: Task) -> Validation:
    """The measure that chooses a student's best weights: the task's loss on held-out examples.

    A student whose outputs are NaN scores NaN, which is never the best.

    Args:
        examples: The held-out split, with labels.
        task: log loss for classes, squared error for regression.
    """
    name = "mse" if task == "regression" else "log_loss"

    def measure(model: nn.Module) -> float:
        try:
            return scores(predict(model, examples), examples, task, [name])[name]
        except DataError:
            return float("nan")

    return Validation(measure, name)


def answers(source: Source, examples: Examples) -> Tensor:
    """What a teacher says on a whole split without being told its labels: [example, *output]."""
    return torch.cat([source(inputs).cpu() for inputs, _ in examples.batches()])
