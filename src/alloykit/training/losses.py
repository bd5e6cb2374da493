"""The loss that belongs to a task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alloykit.data.batches import forward
from alloykit.data.outputs import output_tensor
from alloykit.data.splits import IGNORED
from alloykit.errors import DataError
from alloykit.training.rows import Part
from alloykit.types import Task


def task_loss(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Mean loss of a model's logits or values: cross-entropy, or squared error for regression.

    Args:
        outputs: Logits ``[example, class]`` or ``[example, position, class]``; the one logit of
            a binary classifier, ``[example]`` or ``[example, 1]``; values ``[example, *output]``
            for regression.
        targets: Class indices (-100 is ignored) or values.
        task: Which of the two.

    Shapes:
        -> [], in float32 (float64 where the outputs are); 0 where all targets are ignored
    """
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if task == "regression":
        if targets.numel() != wide.numel():
            raise DataError(
                f"The model gives {list(wide.shape)}, and the targets are {list(targets.shape)}: "
                "for regression there is one target for each number."
            )
        return F.mse_loss(wide, targets.to(wide.dtype).reshape(wide.shape))
    if task == "classification" and (wide.dim() == 1 or wide.shape[1:] == (1,)):
        single = wide.reshape(-1, 1)
        wide = torch.cat([torch.zeros_like(single), single], dim=1)
    rows, wanted = wide.reshape(-1, wide.shape[-1]), targets.reshape(-1)
    if len(rows) != len(wanted):
        raise DataError(
            f"The model gives {list(wide.shape)}, and the targets are {list(targets.shape)}: "
            f"{len(rows)} rows of scores for {len(wanted)} targets."
        )
    loss = F.cross_entropy(rows, wanted, ignore_index=IGNORED, reduction="sum")
    return loss / (wanted != IGNORED).sum().clamp(min=1)


def loss_of(task: Task) -> Callable[[nn.Module, Part], Tensor]:
    """The loss of a task on a batch, for ``train``."""

    def loss(model: nn.Module, part: Part) -> Tensor:
        if part.targets is None:
            raise DataError(
                f"The loss of {task} compares with targets, and the training data has none. "
                "Give labelled examples, or a loss that does without."
            )
        return task_loss(output_tensor(forward(model, part.inputs)), part.targets, task)

    return loss
