"""The short form of the loop: tensors in memory and the loss of a task."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from alloykit.errors import DataError
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from alloykit.types import Task


def fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: Task = "classification",
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``model`` in place with AdamW under a cosine schedule.

    Use it when the data are two tensors and nothing chooses between epochs; ``train`` is the loop
    behind it, with validation, snapshots and several devices.

    Args:
        model: The module to train; left in eval mode with its last weights.
        inputs: ``[example, *input]``, at least one.
        targets: ``[example]`` classes or ``[example, *output]`` values.
        task: Chooses the loss.
        epochs: Passes over the data, at least 1.
        batch_size: Examples per step. A last batch of one example joins the batch before it,
            because BatchNorm takes no batch of one.
        learning_rate: Peak step size, above 0.
        seed: Of the order of the examples and of dropout; initialisation is the caller's.
        after_step: Called after each optimizer step, for example ``ema.update``.
        after_epoch: Called with the epoch's number (from 1) and its mean loss.

    Returns:
        The mean training loss of each epoch.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
        DataError: No examples, other lengths of inputs and targets, or a loss that became NaN or
            infinite; the text says at which step.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20).reshape(-1, 1)
        >>> losses = fit(nn.Linear(1, 1), x, 2 * x, task="regression", epochs=2)
        >>> len(losses)
        2
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(
            "Training takes one target per example, and at least one example. "
            f"Got {len(inputs)} inputs and {len(targets)} targets."
        )
    training = Training(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    history = train(
        model,
        Rows(inputs, targets),
        loss_of(task),
        training,
        after_step=after_step,
        after_epoch=None if after_epoch is None else lambda e: after_epoch(e.number, e.loss),
    )
    return history.losses
