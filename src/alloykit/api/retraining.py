"""The verb retrain: one model on the union of the partitions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from alloykit.api.inputs import as_training, named_modules
from alloykit.api.merging import average
from alloykit.data.batches import forward, length, placed
from alloykit.data.examples import Examples, as_examples
from alloykit.data.splits import OnOverlap, check_splits
from alloykit.errors import InvalidParameter, MissingInput, did_you_mean, listing
from alloykit.evaluation.freezing import require_modules
from alloykit.evaluation.predicting import batch_outputs, evaluating, predict, running
from alloykit.numerics import is_whole
from alloykit.training.history import History
from alloykit.training.retraining import blank, trainable, union
from alloykit.training.retraining import retrain as train_on
from alloykit.training.scoring import validation_loss
from alloykit.training.seeding import borrowed_generators, devices_of
from alloykit.training.settings import Training
from alloykit.types import Task

Start = Literal["blank", "given", "average"]


@dataclass(frozen=True)
class Retrained:
    """A model that was trained on pooled data.

    Attributes:
        model: In eval mode, with the best weights on validation where there was such.
        history: How the training went.
    """

    model: nn.Module
    history: History


def retrain(
    model: nn.Module | Callable[[], nn.Module] | Mapping[str, nn.Module] | Sequence[nn.Module],
    train: Any,
    *,
    start: Start | None = None,
    validation: Any = None,
    task: Task = "classification",
    training: Training | Mapping[str, Any] | None = None,
    batch_size: int = 256,
    snapshot: str | Path | None = None,
    accelerator: Any = None,
    on_overlap: OnOverlap = "error",
    progress: Callable[[str, int, int], None] | None = None,
) -> Retrained:
    """Train one model on the union of partitions: what combining should be measured against.

    Use it where the data may be pooled after all: it is the ceiling. On the held-out split alone,
    from scratch or from the weight average, it is the floor that a fusion or student has to beat.

    Args:
        model: A module or a callable that builds one; several modules where their average is the
            start. Yours are left as they are.
        train: A split in any form that ``compare`` takes, or several partitions by name.
        start: "blank" initialises everything anew; "given" trains on from the model's weights;
            "average" from the plain average of several. By default "average" for several models,
            else "blank".
        validation: Chooses the epoch whose weights are kept, by the loss; None keeps the last.
        task: How outputs and targets are read.
        training: How: a ``Training``, or a mapping of its settings such as {"epochs": 30}.
        batch_size: Of splits given as arrays, while they are read.
        snapshot: Folder to go on from after an interruption, to the same bits.
        accelerator: An ``accelerate.Accelerator`` for several processes or mixed precision.
        on_overlap: "error", "drop" (from ``train``) or "allow" for examples that are in
            ``validation`` too.
        progress: Called after each step with a text, the steps done and the steps in all.

    Raises:
        MissingInput: An average of fewer than two models.
        InvalidParameter: A start that does not fit the models, or parameters of a blank model
            that nothing initialises.
        DataError: Empty partitions, partitions that differ in shape, labels that the model has no
            class for; or a model that cannot be run on the data.
        DataLeak: Examples are both in ``train`` and in ``validation``.

    Example:
        >>> import torch
        >>> parts = {"here": (torch.tensor([[1.0]]), [1]), "there": (torch.tensor([[-1.0]]), [0])}
        >>> found = retrain(nn.Linear(1, 2), parts, training={"epochs": 3})
        >>> len(found.history.epochs)
        3
    """
    settings = as_training(training)
    several = not isinstance(model, nn.Module) and isinstance(model, Mapping | Sequence)
    if wrong := option_mistakes(task, batch_size, snapshot, progress):
        raise InvalidParameter(f"A model cannot be trained so:\n{listing(wrong)}")
    begun = _starting(model, start or ("average" if several else "blank"), settings.seed)
    splits = train if isinstance(train, Mapping) and _is_partitions(train) else {"train": train}
    parts = [as_examples(split, "train", batch_size=batch_size) for split in splits.values()]
    held = None
    if validation is not None:
        held = as_examples(validation, "validation", batch_size=batch_size)
    parts = _checked(begun, parts, held, task, on_overlap)
    data = union(parts)
    judged = None if held is None else validation_loss(held, task)
    history = train_on(
        begun,
        data,
        settings,
        task=task,
        validation=judged,
        snapshot=None if snapshot is None else Path(snapshot),
        accelerator=accelerator,
        progress=progress,
    )
    return Retrained(begun, history)


def option_mistakes(task: Any, batch_size: Any, snapshot: Any, progress: Any) -> list[str]:
    """What is wrong with options that the verbs which train have in common."""
    wrong = []
    if task not in get_args(Task):
        hint = did_you_mean(str(task), get_args(Task))
        wrong.append(f"'task' must be one of {', '.join(get_args(Task))}. Got {task!r}.{hint}")
    if not is_whole(batch_size) or batch_size < 1:
        wrong.append(f"'batch_size' must be a whole number of at least 1. Got {batch_size!r}")
    if snapshot is not None and not isinstance(snapshot, str | PathLike):
        wrong.append(f"'snapshot' must be the path of a folder. Got {snapshot!r}")
    if progress is not None and not callable(progress):
        wrong.append(f"'progress' must be callable. Got {progress!r}")
    return wrong


def _checked(
    model: nn.Module,
    parts: Sequence[Examples],
    validation: Examples | None,
    task: Task,
    on_overlap: OnOverlap,
) -> list[Examples]:
    """The partitions, once labels and model fit and none of them is in the validation split."""
    if not parts:
        raise MissingInput("'train' is an empty mapping. Give at least one partition.")
    held = [] if validation is None else [validation]
    # Before the model runs on them; partitions may share examples with each other.
    check_splits([*parts, *held], task=task, on_overlap="allow")
    classes = known_classes(model, parts[0], task)
    if validation is not None:
        with borrowed_generators(devices_of(model)):
            predict(model, validation)
    return [
        check_splits([part, *held], task=task, classes=classes, on_overlap=on_overlap)[0]
        for part in parts
    ]


def known_classes(model: nn.Module, examples: Examples, task: Task) -> int | None:
    """How many classes a model gives for the first examples of a split; None for regression.

    Raises:
        DataError: It cannot be run on them.
    """
    inputs = examples.inputs_sample()
    with borrowed_generators(devices_of(model)), evaluating(model), running("The model", inputs):
        outputs = batch_outputs(forward(model, placed(inputs, model)), length(inputs))
    if task == "regression":
        return None
    single = outputs.dim() == 1 or outputs.shape[1:] == (1,)
    return 2 if single else outputs.shape[-1]


def _is_partitions(given: Mapping[Any, Any]) -> bool:
    """Several splits by name, and not one batch with named inputs."""
    return not any(hasattr(value, "shape") for value in given.values())


def _starting(model: Any, start: str, seed: int) -> nn.Module:
    if start not in ("blank", "given", "average"):
        raise InvalidParameter(f"'start' must be 'blank', 'given' or 'average'. Got {start!r}.")
    if start != "average":
        if not isinstance(model, nn.Module) and not callable(model):
            raise InvalidParameter(
                f"start={start!r} takes one model. Give one, or ask for start='average'."
            )
        if isinstance(model, nn.Module):
            require_modules({"the model": model})
        made = blank(model, seed) if start == "blank" or not isinstance(model, nn.Module) else model
        require_modules({"what the callable returned": made})
        return trainable(copy.deepcopy(made))
    members = {} if callable(model) else named_modules(model)
    if len(members) < 2:
        raise MissingInput("start='average' takes at least two models: a list, or a mapping.")
    return trainable(copy.deepcopy(average(list(members.values()))))
