"""What a student is given, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs, as_inputs, forward, length, placed
from alloykit.data.examples import Examples, as_examples, from_arrays
from alloykit.data.outputs import output_tensor
from alloykit.data.splits import OnOverlap, check_splits
from alloykit.distillation.objective import DistillationLoss, require_coarse
from alloykit.distillation.outputs import Form
from alloykit.distillation.store import Keep, StoredOutputs
from alloykit.distillation.teacher import Weights, classes_in
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.evaluation.predicting import detect_kind, evaluating, running
from alloykit.numerics import is_number, is_whole
from alloykit.training.seeding import borrowed_generators, devices_of
from alloykit.types import Task

FEWEST = 2
"""Examples that a student can learn from: BatchNorm takes no batch of one."""


@dataclass(frozen=True)
class StudentShape:
    """What a student returns: how many classes (0 for regression), and in which form."""

    classes: int
    form: Form


def training_examples(train: Any) -> tuple[Examples, bool]:
    """The split that a student learns on, and whether it has labels.

    Args:
        train: As every verb takes it; or inputs alone: a tensor, an array, a mapping of tensors,
            or (inputs, None).

    Example:
        >>> split, labelled = training_examples(torch.zeros(3, 2))
        >>> len(split), labelled
        (3, False)
    """
    if isinstance(train, tuple) and len(train) == 2 and train[1] is None:
        train = train[0]
    elif not isinstance(train, Tensor | np.ndarray | Mapping):
        return as_examples(train, "train"), True
    inputs = as_inputs(train, "inputs of train")
    # Examples have targets; these stand for none and are never read.
    return from_arrays(inputs, torch.zeros(length(inputs), dtype=torch.long), "train"), False


def check_options(
    loss: DistillationLoss,
    teachers: Any,
    *,
    layers: tuple[str, str] | None,
    weights: Weights,
    stored: Any,
    keep: Keep,
    augment: Any,
    progress: Any = None,
    snapshot: Any = None,
    every: Any = 0.0,
) -> None:
    """Refuse options that exclude each other.

    Raises:
        InvalidParameter: They do.
        MissingInput: A loss of features without layers.
    """
    for option, folder in (("stored", stored), ("snapshot", snapshot)):
        if folder is not None and not isinstance(folder, str | PathLike):
            raise InvalidParameter(f"{option!r} must be the path of a folder. Got {folder!r}.")
    if not is_number(every) or not every >= 0:
        raise InvalidParameter(f"'every' must be at least 0 seconds. Got {every!r}.")
    fixed = isinstance(teachers, Tensor | StoredOutputs)
    if fixed and stored is not None:
        raise InvalidParameter(
            "'stored' is for what teachers say, and their outputs were given. Leave it out."
        )
    if fixed and (augment is not None or weights is not None or loss.on_features):
        what = "augment" if augment is not None else "weights" if weights is not None else "layers"
        raise InvalidParameter(
            f"'{what}' needs the teachers themselves, and their outputs were given. Give modules."
        )
    if augment is not None and stored is not None:
        raise InvalidParameter(
            "'stored' and 'augment' exclude each other: augmented inputs change in every step, so "
            "the teacher has to see them then. Leave out one of the two."
        )
    for option, value in (("augment", augment), ("progress", progress)):
        if value is not None and not callable(value):
            raise InvalidParameter(f"{option!r} must be callable. Got {value!r}.")
    if layers is not None and not _is_pair(layers):
        raise InvalidParameter(
            f"'layers' must be two names, (student's layer, teacher's layer). Got {layers!r}."
        )
    if is_whole(keep):
        require_coarse(loss.on_outputs, keep)
    names = ", ".join(term.loss.name for term in loss.on_features)
    if names and layers is None:
        raise MissingInput(
            f"The loss {names} compares features: pass layers=(student's layer, teacher's layer)."
        )
    if layers is not None and not names:
        raise InvalidParameter(
            "'layers' is for losses of features. Add one: loss={'kl': 1, 'hint': 1}."
        )


def _is_pair(layers: Any) -> bool:
    if not isinstance(layers, tuple | list) or len(layers) != 2:
        return False
    return all(isinstance(name, str) for name in layers)


def student_shape(student: nn.Module, inputs: Inputs, task: Task) -> StudentShape:
    """What a student returns for a batch; a single output per example counts as a logit.

    Example:
        >>> student_shape(nn.Linear(2, 1), torch.zeros(4, 2), "classification")
        StudentShape(classes=2, form='logits')
    """
    count = length(inputs)
    # Lazy modules draw their parameters here.
    generators = borrowed_generators(devices_of(student))
    with generators, evaluating(student), running("The student", inputs):
        outputs = output_tensor(forward(student, placed(inputs, student)))
    if outputs.dim() == 0 or len(outputs) != count or not outputs.is_floating_point():
        raise DataError(
            f"The student gives {outputs.dtype} outputs {list(outputs.shape)} for {count} examples."
            " It must give real numbers, one row per example."
        )
    if task == "regression":
        return StudentShape(0, "logits")
    single = outputs.dim() == 1 or outputs.shape[1:] == (1,)
    kind = "logits" if single else detect_kind(outputs, task)
    form: Form = "probabilities" if kind == "probabilities" else "logits"
    return StudentShape(classes_in(outputs), form)


def checked_splits(
    train: Examples,
    validation: Examples | None,
    *,
    labelled: bool,
    task: Task,
    classes: int,
    on_overlap: OnOverlap,
) -> Examples:
    """The training examples, once both splits are fit to be used.

    Raises:
        DataError: Too few examples, or labels that cannot be used.
        DataLeak: Both share examples, and ``on_overlap`` is "error".
    """
    if len(train) < FEWEST:
        raise DataError(
            f"The train split has {len(train)} examples, and a student needs at least {FEWEST}."
        )
    known = classes or None
    if labelled:
        splits = [train] if validation is None else [train, validation]
        return check_splits(splits, task=task, classes=known, on_overlap=on_overlap)[0]
    if validation is None:
        return train
    check_splits([validation], task=task, classes=known)
    # Only inputs decide about overlap; as values, labels that stand for none pass.
    return check_splits([train, validation], task="regression", on_overlap=on_overlap)[0]
