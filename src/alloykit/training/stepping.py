"""The gradients of one step: of the mean loss over all its batches, and over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter
from alloykit.training.hardware import Hardware
from alloykit.training.order import share
from alloykit.training.rows import Part, Rows

Loss = Callable[[nn.Module, Part], Tensor]
"""``(model, part) -> []``: the mean loss of a batch."""


def add_gradients(
    machine: Hardware, model: nn.Module, data: Rows, batches: Sequence[Tensor], loss: Loss
) -> tuple[float, int]:
    """Add the gradient of Σ nᵢ·lossᵢ / Σ nᵢ to the parameters, one batch in memory at a time.

    nᵢ is the number of targets of batch i that count (``Rows.scored``), so that the result is the
    gradient of the loss on all rows at once, whatever the batches' sizes and padding. Each process
    takes its share of each batch.

    Args:
        machine: Where it runs.
        model: The model itself, without wrappers.
        data: Where the rows come from.
        batches: Positions of the rows of each batch.
        loss: The mean loss of a batch.

    Returns:
        The mean loss, and the number of targets that it is a mean over.
    """
    scored = sum(data.scored(rows) for rows in batches)
    losses = []
    for number, rows in enumerate(batches, start=1):
        own = share(rows, machine.process, machine.processes)
        # DistributedDataParallel averages over processes: each share counts that much more.
        weight = machine.processes * data.scored(own) / max(scored, 1)
        # A process without a row of its own takes part with weight 0: the others wait for it.
        part = data.part(own if len(own) else rows[:1]).placed(model)
        with machine.computing(last=number == len(batches)):
            with machine.autocast():
                losses.append(loss(machine.model, part) * weight)
            if not losses[-1].requires_grad:
                raise InvalidParameter(
                    "The loss does not depend on any parameter that is trained, so nothing would "
                    "be learned. Does the model detach its outputs, or give class numbers?"
                )
            machine.backward(losses[-1])
    return machine.mean(torch.stack([each.detach() for each in losses]).sum()), scored
