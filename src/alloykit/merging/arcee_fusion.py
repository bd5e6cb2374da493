"""Arcee fusion: of one model, the elements that matter most replace the base's."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_compat
from alloykit.merging.selection import kth_largest
from alloykit.types import Scan, TensorGroup

MERGEKITS_SHIFT = 1e-8
"""What mergekit adds to probabilities before it takes their logarithm."""


@merge_method(
    needs=frozenset({"base"}),
    members=range(1, 2),
    paper="Arcee AI, mergekit, merge method arcee_fusion, 2025.",
)
def arcee_fusion(compat: str | None = None) -> Passes:
    """Take those elements from the model whose importance stands out, all others from the base.

    importance = |δ| · KL(softmax(member), softmax(base)), rows of the last dimension as logits
    merged = member where importance ≥ median + 1.5 · (third − first quartile), base elsewhere

    Use it to take over the few large changes of a fine-tune and leave out the many small ones.
    The importance is a rule of thumb: weights are no logits, and no paper argues for it.

    Args:
        compat: "mergekit" adds 1e-8 to the probabilities before their divergence is taken, as
            mergekit does.

    Shapes:
        members [1, *shape], base [*shape] -> [*shape]; a vector is one row.

    Needs:
        base. Exactly one member. Where nothing differs in importance, as in a scalar, the member
        is taken.

    Raises:
        InvalidParameter: compat is neither None nor "mergekit".

    Example:
        >>> import torch
        >>> from alloykit.execution.scanning import merge_whole
        >>> base = torch.zeros(1, 8)
        >>> member = torch.tensor([[0.1, -0.1, 0.2, -0.2, 0.1, -0.1, 0.2, 3.0]])
        >>> group = TensorGroup("w", ("a",), (member,), (1.0,), base=base)
        >>> merge_whole(arcee_fusion(), group)
        tensor([[0., 0., 0., 0., 0., 0., 0., 3.]])

    References:
        Arcee AI, mergekit, 2025, the only description. Differs from mergekit in precision alone:
        the divergence is summed from terms that are never negative, in float64, where mergekit's
        cancels in the stored dtype (in bfloat16 half of its importances are negative, and which
        elements it takes is mostly rounding); and the quartiles are those of all elements,
        where mergekit's are those of a million drawn at random from a larger tensor.
    """
    require_compat("arcee_fusion", compat)

    def survey(scan: Scan) -> float:
        last = scan.numel - 1
        # The elements at these places in ascending order, as ranks from the largest.
        ranks = [scan.numel - int(share * last) for share in (0.25, 0.5, 0.75)]
        rows = [lambda group: importance(group, compat)]
        found = kth_largest(scan, rows, [ranks], scattered=False, dtype=torch.float64)
        first, median, third = found[0]
        return median + 1.5 * (third - first)

    def merge(group: TensorGroup, threshold: float) -> Tensor:
        base = base_of("arcee_fusion", group)
        return torch.where(importance(group, compat) >= threshold, group.tensors[0], base)

    return Passes(merge, survey, unit="row")


def importance(group: TensorGroup, compat: str | None = None) -> Tensor:
    """|δ| · KL of the rows' softmaxes, in float64, at least 0."""
    base = base_of("arcee_fusion", group).double()
    member = group.tensors[0].double()
    if not base.numel():
        return torch.zeros_like(base)
    return (base - member).abs_().mul_(divergence(member, base, compat))


def divergence(one: Tensor, other: Tensor, compat: str | None = None) -> Tensor:
    """KL(softmax(one), softmax(other)) along the last dimension, which is kept.

    With p and q the probabilities and t = log p − log q it is Σ (p·t − (p − q)), since both sum
    to one; no term is negative, so that none cancels another as those of Σ p·t do.

    Args:
        one: ``[*, n]`` in float64.
        other: The same.
        compat: "mergekit" adds 1e-8 to the probabilities, which then do not sum to one.

    Example:
        >>> divergence(torch.tensor([0.0, 1e-6]).double(), torch.zeros(2).double())
        tensor([1.2500e-13], dtype=torch.float64)
    """
    if compat:
        p, q = (logits.softmax(-1).add_(MERGEKITS_SHIFT) for logits in (one, other))
        return (p * (p / q).log_()).sum(-1, keepdim=True)
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    ratio, p, q = log_p - log_q, log_p.exp_(), log_q.exp_()
    # Nearly equal probabilities have a difference that is not lost in their rounding.
    difference = torch.where(ratio < 1.0, q * ratio.clamp_max(1.0).expm1_(), p - q)
    return ratio.mul_(p).sub_(difference).clamp_min_(0.0).sum(-1, keepdim=True)
