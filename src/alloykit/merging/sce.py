"""SCE: select what varies among the members, calculate weights, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_compat, require_number
from alloykit.merging.selection import kth_largest
from alloykit.merging.task_vectors import (
    agreeing_sums,
    elected_sign,
    just_below,
    moved,
    reversed_delta,
)
from alloykit.types import Scan, TensorGroup

MERGEKITS_FLOOR = 1e-6
"""mergekit divides by no smaller sum of weights, and trusts no smaller sum of mean squares."""


@dataclass(frozen=True)
class Selected:
    """What SCE knows of a whole tensor.

    Attributes:
        threshold: The smallest variance of an element that is selected.
        weights: Member -> its share of the selected elements' squares.
    """

    threshold: float
    weights: dict[str, float]


@merge_method(
    needs=frozenset({"base"}),
    paper="Wan et al., FuseChat: Knowledge fusion of chat models, 2024, arXiv:2408.07990.",
)
def sce(select_topk: float | None = None, compat: str | None = None) -> Passes:
    """Select the elements that vary most, weigh members by their squares, erase minority signs.

    s = 1 for the share ``select_topk`` of elements with the largest variance over the members
    ηᵢ = wᵢ · Σ (s∘δᵢ)² / Σⱼ wⱼ · Σ (s∘δⱼ)², one number for each tensor and member
    γ = sign(Σ s∘δᵢ), for each element
    merged = base + s ∘ Σ ηᵢ·δᵢ / Σ ηᵢ, both sums over the members with sign(δᵢ) = γ

    Use it for fine-tunes of one base that should weigh in each tensor by how much they changed
    it, without weights by hand.

    Args:
        select_topk: Fraction of the elements that is selected, in [0, 1]. The default is the
            paper's 0.1, and 1, mergekit's, with ``compat="mergekit"``. 0 selects nothing.
        compat: "mergekit" takes the share of those elements alone whose variance is not zero,
            rounded down, weighs all members alike where the mean squares sum to less than 1e-6,
            which is usual, divides by 1e-6 at least, and counts balanced votes as positive.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. Two members or more to vary; one member is taken whole. Weights by hand multiply
        the squares.

    Raises:
        InvalidParameter: select_topk outside [0, 1].

    Example:
        >>> import torch
        >>> from alloykit.execution.scanning import merge_whole
        >>> members = (torch.tensor([3.0, 1.0, 1.0]), torch.tensor([-1.0, 1.0, 3.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (0.5, 0.5), base=torch.zeros(3))
        >>> merge_whole(sce(select_topk=0.67), group)
        tensor([3., 0., 2.])

    References:
        Wan et al., FuseChat: Knowledge fusion of chat models, 2024, arXiv:2408.07990, section 3.3.
        Elements of the very variance of the last one selected are selected too.
    """
    share = (1.0 if compat else 0.1) if select_topk is None else select_topk
    require_compat("sce", compat)
    hint = "It is a fraction: 10 % is 0.1."
    require_number("sce", "select_topk", share, low=0.0, high=1.0, hint=hint)

    def survey(scan: Scan) -> Selected:
        threshold = _threshold(scan, share, compat)
        squares = scan.total(lambda group: _squares(group, threshold)).tolist()
        means = [square / max(1, scan.numel) for square in squares]
        if compat and sum(means) < MERGEKITS_FLOOR:
            means = [1.0] * len(means)
        weighted = [mean * weight for mean, weight in zip(means, scan.weights, strict=True)]
        total = math.fsum(weighted)
        shares = [each / total if total else 0.0 for each in weighted]
        return Selected(threshold, dict(zip(scan.members, shares, strict=True)))

    def merge(group: TensorGroup, state: Selected) -> Tensor:
        base = base_of("sce", group)
        vectors = _selected(group, state.threshold)
        weights = [state.weights[member] for member in group.members]
        sign = elected_sign(vectors, base, compat)
        weighted = [v.mul_(weight) for weight, v in zip(weights, vectors, strict=True)]
        total, heads = agreeing_sums(weighted, sign, weights)
        smallest = min((weight for weight in weights if weight), default=1.0)
        floor = MERGEKITS_FLOOR if compat else smallest
        return moved(base, total.div_(heads.clamp_min_(floor)).mul_(sign))

    return Passes(merge, survey)


def _deltas(group: TensorGroup) -> list[Tensor]:
    return [reversed_delta(group, index) for index in range(len(group.tensors))]


def variance(vectors: Sequence[Tensor]) -> Tensor:
    """Of each element over the members, in float64: squares of small numbers are no float32s."""
    wide = [vector.double() for vector in vectors]
    mean = torch.zeros_like(wide[0])
    for vector in wide:
        mean.add_(vector, alpha=1.0 / len(wide))
    total = torch.zeros_like(mean)
    for vector in wide:
        total.add_((vector - mean).square_(), alpha=1.0 / len(wide))
    return total


def _selected(group: TensorGroup, threshold: float) -> list[Tensor]:
    """The members' task vectors, turned round, with zeros for what is not selected."""
    vectors = _deltas(group)
    if threshold:
        chosen = F.hardshrink(variance(vectors), just_below(threshold, torch.float64))
        mask = chosen.sign_().to(vectors[0].dtype)
        vectors = [vector.mul_(mask) for vector in vectors]
    return vectors


def _squares(group: TensorGroup, threshold: float) -> Tensor:
    return torch.stack([vector.double().square_().sum() for vector in _selected(group, threshold)])


def _threshold(scan: Scan, share: float, compat: str | None) -> float:
    """The variance that an element needs to be selected; 0 where all are."""
    if share >= 1.0:
        return 0.0
    if compat:
        varying = scan.total(lambda group: variance(_deltas(group)).count_nonzero())
        # In float32, as there.
        count = int(varying * share)
    else:
        count = max(1, round(share * scan.numel)) if share else 0
    if not count:
        return math.inf
    rows = [lambda group: variance(_deltas(group))]
    return kth_largest(scan, rows, [[count]], dtype=torch.float64)[0][0]
