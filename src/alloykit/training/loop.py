"""The one training loop: plain, explicit, the same numbers for the same seed on one device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from alloykit.errors import DataError, InvalidParameter
from alloykit.training.losses import task_loss
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

    Args:
        model: The module to train; left in eval mode.
        inputs: ``[example, *input]``, at least one.
        targets: ``[example]`` classes or ``[example, *output]`` values.
        task: Chooses the loss.
        epochs: Passes over the data, at least 1.
        batch_size: Examples per step. A last batch of one example joins the batch before it,
            because BatchNorm takes no batch of one.
        learning_rate: Peak step size, positive.
        seed: Of the order of the examples (initialisation and dropout draw from torch's own).
        after_step: Called after each optimizer step, for example ``ema.update``.
        after_epoch: Called with the epoch's number (from 1) and its mean loss.

    Returns:
        The mean training loss of each epoch.

    Raises:
        InvalidParameter: A number outside its range.
        DataError: No examples, other lengths of inputs and targets, or a loss that became NaN or
            infinite; the text says at which step.
    """
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise InvalidParameter(
            "fit takes at least one epoch, one example a batch and a positive learning rate. "
            f"Got epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}."
        )
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(
            "Training takes one target per example, and at least one example. "
            f"Got {len(inputs)} inputs and {len(targets)} targets."
        )
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    steps = epochs * len(_batches(torch.arange(len(inputs)), batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[float] = []
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        shuffled = torch.randperm(len(inputs), generator=order)
        for step, batch in enumerate(_batches(shuffled, batch_size), start=1):
            loss = task_loss(model(inputs[batch]), targets[batch], task)
            if not bool(torch.isfinite(loss)):
                raise DataError(
                    f"The loss became {float(loss.detach())} in epoch {epoch} of {epochs}, "
                    f"step {step}. Lower learning_rate ({learning_rate:g}), or look at the data."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
            if after_step is not None:
                after_step()
        history.append(total / len(inputs))
        if after_epoch is not None:
            after_epoch(epoch, history[-1])
    model.eval()
    return history


def _batches(order: Tensor, size: int) -> list[Tensor]:
    batches = list(torch.split(order, size))
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
