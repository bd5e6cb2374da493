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
        inputs: ``[example, *input]``.
        targets: ``[example]`` classes or ``[example, *output]`` values.
        task: Chooses the loss.
        epochs: Passes over the data, at least 1.
        batch_size: Examples per step.
        learning_rate: Peak step size, positive.
        seed: Of the order of the examples (initialisation and dropout draw from torch's own).
        after_step: Called after each optimizer step, for example ``ema.update``.
        after_epoch: Called with the epoch's number (from 1) and its mean loss.

    Returns:
        The mean training loss of each epoch.

    Raises:
        InvalidParameter: A number outside its range.
        DataError: The loss became NaN or infinite; the text says at which step.
    """
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise InvalidParameter(
            "fit takes at least one epoch, one example a batch and a positive learning rate. "
            f"Got epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}."
        )
    order = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(inputs) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[float] = []
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(inputs), generator=order).split(batch_size):
            loss = task_loss(model(inputs[batch]), targets[batch], task)
            if not bool(torch.isfinite(loss)):
                raise DataError(f"The loss became {float(loss)} in epoch {epoch} of {epochs}.")
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
