"""How much each of several teachers is believed on each example."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.data.splits import IGNORED
from alloykit.evaluation.predicting import LOWEST


def confidence_weights(stack: Tensor, labels: Tensor | None = None) -> Tensor:
    """One weight per teacher and row; they sum to one over the teachers.

    without labels: w_m ∝ exp(-H(p_m)), H the entropy; with labels (CA-MKD):
    w_m = (1 - softmax_m(-log p_m[y])) / (M - 1)

    Use it when teachers know different things: a teacher that is unsure, or wrong, of an example
    hardly counts there. Rows whose label is -100 are weighed by entropy.

    Args:
        stack: Log-probabilities of every teacher.
        labels: The true classes, where known.

    Shapes:
        stack [teacher, *, class], labels [*] -> [teacher, *]

    Example:
        >>> stack = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).clamp_min(1e-30).log()
        >>> confidence_weights(stack)
        tensor([[0.3333],
                [0.6667]])

    References:
        Zhang, Chen, Wang, Confidence-aware multi-teacher knowledge distillation, 2022,
        arXiv:2201.00007, equation 5. The weights by entropy are ours.
    """
    logs = stack.clamp_min(LOWEST)
    entropy = -(logs.exp() * logs).sum(-1)
    weights = (-entropy).softmax(0)
    if labels is None or len(stack) == 1:
        return weights
    known = labels != IGNORED
    place = labels.where(known, torch.zeros_like(labels)).expand(stack.shape[:-1])
    losses = -logs.gather(-1, place[..., None])[..., 0]
    by_label = (1 - losses.softmax(0)) / (len(stack) - 1)
    return torch.where(known, by_label, weights)


def pooled_by_confidence(stack: Tensor, labels: Tensor | None = None) -> Tensor:
    """The mean of the teachers' probabilities, weighted on each row: log Σ w_m(x) p_m(x).

    Shapes:
        stack [teacher, *, class], labels [*] -> [*, class]

    Example:
        >>> stack = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).clamp_min(1e-30).log()
        >>> pooled_by_confidence(stack).exp()
        tensor([[0.8333, 0.1667]])
    """
    return (stack + confidence_weights(stack, labels).log()[..., None]).logsumexp(0)
