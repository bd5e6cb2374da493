"""What chooses between epochs: a measure of the model on data that it does not train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from alloykit.data.batches import forward, placed
from alloykit.data.examples import Examples
from alloykit.data.outputs import output_tensor
from alloykit.data.splits import IGNORED
from alloykit.training.history import History
from alloykit.training.losses import task_loss
from alloykit.types import Task


@dataclass(frozen=True)
class Validation:
    """What chooses the best epoch.

    Attributes:
        measure: ``model -> score``, called in eval mode without gradients. NaN is the worst score
            there is; of equal scores the earlier epoch's weights are kept.
        metric: Its name.
        higher_is_better: Its direction.
    """

    measure: Callable[[nn.Module], float]
    metric: str
    higher_is_better: bool = False


def begun(validation: Validation | None) -> History:
    """The history of a run before its first epoch."""
    if validation is None:
        return History()
    return History(metric=validation.metric, higher_is_better=validation.higher_is_better)


def validation_loss(examples: Examples, task: Task) -> Validation:
    """The mean loss of a task on a split.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples(([[1.0], [3.0]], [0.0, 0.0]), "test")
        >>> validation_loss(split, "regression").measure(nn.Identity())
        5.0
    """

    def measure(model: nn.Module) -> float:
        total, count = 0.0, 0
        for inputs, targets in examples.batches():
            outputs = output_tensor(forward(model, placed(inputs, model)))
            scored = targets.numel() if task == "regression" else int((targets != IGNORED).sum())
            loss = task_loss(outputs, targets.to(outputs.device), task)
            total, count = total + float(loss.detach()) * scored, count + scored
        return total / max(count, 1)

    return Validation(measure, "loss")
