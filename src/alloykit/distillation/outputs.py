"""Outputs of classifiers as logits, and tempered log-probabilities without NaN."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from alloykit.evaluation.predicting import LOWEST, SMALLEST
from alloykit.numerics import compute_dtype

Form = Literal["logits", "probabilities"]


def as_logits(outputs: Tensor, form: Form = "logits") -> Tensor:
    """Logits in float32 (float64 where they are) of logits, log-probabilities or probabilities.

    Probabilities become log(p / Σp), where zero counts as 1.2e-38. A single output per example
    becomes two classes.

    Args:
        outputs: ``[example, *, class]``, ``[example]`` or ``[example, 1]``.
        form: "logits" (also for log-probabilities: the softmax of either is the same) or
            "probabilities".

    Example:
        >>> as_logits(torch.tensor([0.0]), "logits")
        tensor([[0., 0.]])
    """
    outputs = outputs.to(compute_dtype(outputs.dtype))
    if outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1):
        single = outputs.reshape(-1, 1)
        other = 1 - single if form == "probabilities" else torch.zeros_like(single)
        outputs = torch.cat([other, single], dim=1)
    if form == "probabilities":
        return (outputs / outputs.sum(-1, keepdim=True)).clamp_min(SMALLEST).log()
    return outputs


def tempered(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at a temperature: log softmax(z / T), at least -1e4.

    The bound keeps 0 · log 0 from being NaN, for teachers that are sure and for classes that a
    logit of -Inf rules out.

    Shapes:
        [row, class] -> [row, class]

    Example:
        >>> tempered(torch.tensor([[0.0, 0.0]]), 2.0)
        tensor([[-0.6931, -0.6931]])
    """
    return (logits / temperature).log_softmax(-1).clamp_min(LOWEST)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q) of each row, from finite log-probabilities.

    Shapes:
        [row, class], [row, class] -> [row]

    Example:
        >>> sure, even = torch.tensor([[0.0, -1e4]]), torch.tensor([[0.5, 0.5]]).log()
        >>> divergence(sure, even)
        tensor([0.6931])
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)
