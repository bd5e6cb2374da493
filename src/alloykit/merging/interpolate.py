"""Interpolation between a base and one model (WiSE-FT)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.merging.contract import merge_method
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    members=range(1, 2),
    paper="Wortsman et al., Robust fine-tuning of zero-shot models, 2021, arXiv:2109.01903.",
)
def interpolate(alpha: float = 0.5) -> Callable[[TensorGroup], Tensor]:
    """Walk the straight line from the base to one model fine-tuned from it (WiSE-FT).

    merged = base + alpha · (member − base)

    Use it when a fine-tuned model lost some of the base's robustness: between the two there is
    often a point that is better on both kinds of data. ``soup`` chooses alpha on validation data.

    Args:
        alpha: Place on the line: 0 is the base, 1 the member. Values outside [0, 1] extrapolate
            and are accepted; the default 0.5 is the authors' choice without validation data.

    Shapes:
        members [1, *shape], base [*shape] -> [*shape]

    Needs:
        base. Exactly one member.

    Raises:
        InvalidParameter: alpha is not a finite number.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("tuned",), (torch.ones(2),), (1.0,), base=torch.zeros(2))
        >>> interpolate(alpha=0.25).merge(group, None)
        tensor([0.2500, 0.2500])

    References:
        Wortsman et al., Robust fine-tuning of zero-shot models, 2021, arXiv:2109.01903,
        equation 1. Differs in nothing but the order of operations: alpha 0 gives exactly the
        base, alpha 1 exactly the member.
    """
    if not math.isfinite(alpha):
        raise InvalidParameter(f"The 'alpha' parameter of interpolate must be finite. Got {alpha}.")

    def merge(group: TensorGroup) -> Tensor:
        if group.base is None:
            raise MissingInput(
                "interpolate walks from a base to a model, and no base was given. "
                "Pass base=PATH: the checkpoint that the model was fine-tuned from."
            )
        if alpha in (0.0, 1.0):
            return (group.tensors[0] if alpha else group.base).clone()
        # With the sign that leaves a zero that both have the sign that it has.
        if alpha > 0.0:
            return group.base - (group.base - group.tensors[0]).mul_(alpha)
        return group.base + (group.tensors[0] - group.base).mul_(alpha)

    return merge
