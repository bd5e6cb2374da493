"""The verb retrain: one model on the union of the partitions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from alloykit.api.inputs import as_training, named
from alloykit.api.merging import average
from alloykit.data.examples import as_examples
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.training.history import History
from alloykit.training.retraining import blank, union
from alloykit.training.retraining import retrain as train_on
from alloykit.training.scoring import validation_loss
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
        progress: Called after each step with a text, the steps done and the steps in all.

    Raises:
        MissingInput: An average of fewer than two models.
        InvalidParameter: A start that does not fit the models, or parameters of a blank model
            that nothing initialises.
        DataError: Empty partitions, or partitions that differ in shape.

    Example:
        >>> import torch
        >>> parts = {"here": (torch.tensor([[1.0]]), [1]), "there": (torch.tensor([[-1.0]]), [0])}
        >>> found = retrain(nn.Linear(1, 2), parts, training={"epochs": 3})
        >>> len(found.history.epochs)
        3
    """
    settings = as_training(training)
    several = not isinstance(model, nn.Module) and isinstance(model, Mapping | Sequence)
    begun = _starting(model, start or ("average" if several else "blank"), settings.seed)
    splits = train if isinstance(train, Mapping) and _is_partitions(train) else {"train": train}
    data = union([as_examples(split, "train", batch_size=batch_size) for split in splits.values()])
    judged = None
    if validation is not None:
        examples = as_examples(validation, "validation", batch_size=batch_size)
        judged = validation_loss(examples, task)
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
        if start == "blank":
            return blank(model, seed)
        return _trainable(model if isinstance(model, nn.Module) else model())
    members = {} if callable(model) else named(model)
    if len(members) < 2:
        raise MissingInput("start='average' takes at least two models: a list, or a mapping.")
    return _trainable(average(list(members.values())))


def _trainable(model: nn.Module) -> nn.Module:
    """A copy of the model with all of its floating parameters to train."""
    trained = copy.deepcopy(model)
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return trained
