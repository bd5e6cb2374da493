"""The loss that belongs to a task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from alloykit.data.splits import IGNORED
from alloykit.types import Task


def task_loss(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Mean loss of a model's logits or values: cross-entropy, or squared error for regression.

    Args:
        outputs: Logits ``[example, class]`` or ``[example, position, class]``; the one logit of
            a binary classifier, ``[example]`` or ``[example, 1]``; values ``[example, *output]``
            for regression.
        targets: Class indices (tokens: -100 is ignored) or values.
        task: Which of the two.

    Shapes:
        -> [], in float32.
    """
    if task == "regression":
        return F.mse_loss(outputs.float(), targets.float().reshape(outputs.shape))
    if task == "classification" and (outputs.dim() == 1 or outputs.shape[1:] == (1,)):
        single = outputs.reshape(-1, 1)
        outputs = torch.cat([torch.zeros_like(single), single], dim=1)
    classes = outputs.shape[-1]
    return F.cross_entropy(
        outputs.float().reshape(-1, classes), targets.reshape(-1), ignore_index=IGNORED
    )
