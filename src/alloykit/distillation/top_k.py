"""The k most probable classes of a teacher, and one class for all others together."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.evaluation.predicting import LOWEST


def top_k(log_probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k largest log-probabilities of each row, and the mass of the remainder.

    Returns k + 1 log-probabilities, the last that of all other classes together, and the numbers
    of the k classes, both in order of falling probability.

    Args:
        log_probabilities: ``[*, class]``; each row sums to one in probabilities.
        k: Classes to keep, from 1 to one less than there are.

    Shapes:
        [*, class] -> [*, k + 1], [*, k]

    Example:
        >>> logs, classes = top_k(torch.tensor([[0.1, 0.6, 0.3]]).log(), 1)
        >>> logs.exp(), classes
        (tensor([[0.6000, 0.4000]]), tensor([[1]]))
    """
    kept, classes = log_probabilities.topk(k, dim=-1)
    return torch.cat([kept, rest_of(log_probabilities, classes)], dim=-1), classes


def coarse(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    """The same for given classes: their log-probabilities, then that of all others together.

    KL between coarse distributions is KL between the full ones less what the others differ by
    among themselves: KL_full = KL_coarse + rest · KL(teacher's others ‖ student's others). It is
    exact at a temperature of 1; at others the remainder is tempered as one class.

    Shapes:
        [*, class], classes [*, k] -> [*, k + 1]

    Example:
        >>> coarse(torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([[2]])).exp()
        tensor([[0.3000, 0.7000]])
    """
    kept = log_probabilities.gather(-1, classes)
    return torch.cat([kept, rest_of(log_probabilities, classes)], dim=-1)


def rest_of(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    """Log of the mass outside ``classes``: [*, class], [*, k] -> [*, 1], at least -1e4.

    It sums what is left instead of taking the kept from one, which would cancel.
    """
    others = log_probabilities.scatter(-1, classes, -torch.inf)
    return others.logsumexp(-1, keepdim=True).clamp_min(LOWEST)
