"""The median of the members' predictions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from alloykit.ensembling.pooling import tasks_of
from alloykit.ensembling.rule import EVERY_TASK, Pooling, ensemble_rule
from alloykit.errors import InvalidParameter
from alloykit.numerics import compute_dtype
from alloykit.types import State


@ensemble_rule(
    tasks=EVERY_TASK,
    fits=False,
    candidates=({"space": "probabilities"}, {"space": "values"}),
    formula="y = median(y₁ … y_M)",
)
def median(space: Literal["probabilities", "values"] = "probabilities") -> Pooling:
    """Take the middle of what the members predict, so that a single outlier cannot matter.

    values: y = median(y₁ … y_M); probabilities: p ∝ median(p₁ … p_M), class by class

    Use it when one or two members may be far off (diverged, fed with other units) and there are
    at least three of them. An even number gives the mean of the two middle ones. With two members
    it is their average.

    Args:
        space: "probabilities" for classes: the medians are divided by their sum, because they
            need not sum to one; that can take a class outside the range of the members.
            "values" for regression.

    Shapes:
        stack [member, example, class] -> [example, class]

    Raises:
        InvalidParameter: Another space.

    Example:
        >>> median("values").combine(torch.tensor([[1.0], [2.0], [900.0]]), {})
        tensor([2.])
    """
    if space not in ("probabilities", "values"):
        raise InvalidParameter(
            f"The 'space' parameter of median must be probabilities or values. Got {space!r}."
        )

    def combine(stack: Tensor, _state: State) -> Tensor:
        ordered = stack.to(compute_dtype(stack.dtype)).sort(0).values
        low, high = ordered[(len(stack) - 1) // 2], ordered[len(stack) // 2]
        if space == "values":
            return low + (high - low) / 2
        # The logarithm keeps the order, so the middle ones are the same; their mean is taken as
        # probabilities.
        return (torch.logaddexp(low, high) - math.log(2)).log_softmax(-1)

    return Pooling(combine, tasks=tasks_of(space))
