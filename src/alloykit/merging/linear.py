"""Linear merging: the plain or weighted mean of the members, or their weighted sum."""

from __future__ import annotations

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import combined
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup


@merge_method(
    linear=True, paper="Wortsman et al., Model soups, 2022, arXiv:2203.05482, section 2 (uniform)."
)
def linear(normalize: bool = True) -> Passes:
    """Average the members' tensors, plainly or with one weight per member.

    merged = Σ wᵢ · memberᵢ, with Σ wᵢ = 1 unless ``normalize`` is off

    Use it when the members are checkpoints of one run, or fine-tunes of one base. Members that
    were trained from different starts lie in different basins: align them first, or ensemble.

    Args:
        normalize: Whether weights are shares: not negative, and divided by their sum. Without it
            they are used as they are, of either sign, 1 each by default: the plain sum.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members. Weights are the group's; shares already sum to one.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("a", "b"), (torch.zeros(2), torch.ones(2)), (0.25, 0.75))
        >>> linear().merge(group, None)
        tensor([0.7500, 0.7500])

    References:
        Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time, 2022, arXiv:2203.05482. Differs from common
        code in the sum: differences from the heaviest member are taken, so that equal members
        give exactly that member. mergekit agrees, but for weights that sum to zero or have a
        negative one among them, which are refused here unless ``normalize`` is off.
    """

    def mean(group: TensorGroup, _: None) -> Tensor:
        return weighted_mean(group.tensors, group.weights, coarse=group.coarse)

    def total(group: TensorGroup, _: None) -> Tensor:
        return combined(group.tensors, group.weights, coarse=group.coarse)

    if normalize:
        return Passes(merge=mean, factors=lambda weights, _: weights)
    return Passes(merge=total, weights="factors", factors=lambda weights, _: weights)
