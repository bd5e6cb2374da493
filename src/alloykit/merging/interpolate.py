"""Interpolation between a base and one model (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.gram import affine, base_of
from alloykit.merging.ranges import require_number
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
        MissingInput: No base.

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
    require_number("interpolate", "alpha", alpha)

    def merge(group: TensorGroup) -> Tensor:
        return affine(
            (base_of("interpolate", group), group.tensors[0]),
            (1.0 - alpha, alpha),
            coarse=group.coarse,
        )

    return merge
