"""Linear merging: the plain or weighted mean of the members."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup


@merge_method(linear=True, paper="Wortsman et al., Model soups, 2022, arXiv:2203.05482, section 2 (uniform).")
def linear() -> Callable[[TensorGroup], Tensor]:
    """Average the members' tensors, plainly or with one weight per member.

    merged = Σ wᵢ · memberᵢ, with Σ wᵢ = 1

    Use it when the members are checkpoints of one run, or fine-tunes of one base. Members that
    were trained from different starts lie in different basins: align them first, or ensemble.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members. Weights are the group's, already summing to one.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("a", "b"), (torch.zeros(2), torch.ones(2)), (0.25, 0.75))
        >>> linear().merge(group, None)
        tensor([0.7500, 0.7500])

    References:
        Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time, 2022, arXiv:2203.05482. Differs from common
        code in the sum: differences from the heaviest member are taken, so that equal members
        give exactly that member.
    """
    return lambda group: weighted_mean(group.tensors, group.weights)
