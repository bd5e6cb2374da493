"""RAM+: as RAM, and what one member alone changed is amplified by how much it shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import moved, reversed_delta
from alloykit.types import Scan, TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Yuan et al., Behavior knowledge merge in reinforced agentic models, 2026, "
    "arXiv:2601.13572.",
)
def ramplus_tl(r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> Passes:
    """Average what several members changed; add what one changed, amplified tensor by tensor.

    mᵢ = 1 where |δᵢ| > epsilon, 0 elsewhere; c = Σ mᵢ
    λᵢ = 1 + r · min(ρᵢ, alpha), ρᵢ = (elements of mᵢ with c > 1) / (elements of mᵢ with c = 1)
    merged = base + Σ wᵢ·mᵢ·δᵢ / c where c > 1, and + Σ λᵢ·wᵢ·mᵢ·δᵢ where c = 1

    Use it as ``ram``: averaging what is shared weakens a member by more the more it shares, and
    its own elements make up for it.

    Args:
        r: By how much a member's own elements are amplified for a ratio of 1, any finite number.
            The default 0.1 is mergekit's; the authors search 0.05 to 0.2.
        alpha: The ratio beyond which no more is added, at least 0. The default 0.2 is mergekit's.
        epsilon: Size of a change that does not count as one, at least 0, in the unit of the
            weights. The default 1e-5 is the authors'.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default, which the paper does not
        have: they multiply task vectors and do not change what is counted.

    Raises:
        InvalidParameter: A parameter out of its range.

    Example:
        >>> import torch
        >>> from alloykit.execution.scanning import merge_whole
        >>> members = (torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(3))
        >>> merge_whole(ramplus_tl(r=1.0, alpha=0.5), group)
        tensor([2., 3., 0.])

    References:
        Yuan et al., Behavior knowledge merge in reinforced agentic models, 2026,
        arXiv:2601.13572, section 4. The authors count over the whole model and cap the ratio at
        1; this is the tensor-local form that mergekit has, and agrees with it.
    """
    require_number("ramplus_tl", "r", r)
    require_number("ramplus_tl", "alpha", alpha, low=0.0)
    require_number("ramplus_tl", "epsilon", epsilon, low=0.0)

    def survey(scan: Scan) -> dict[str, float]:
        def counts(group: TensorGroup) -> Tensor:
            masks = [changes(group, index, epsilon).abs_().sign_() for index in indices]
            single = _changed_once(sum(masks, torch.zeros_like(masks[0])))
            sums = [[mask.sum(dtype=torch.float64), (mask * single).sum(dtype=torch.float64)]
                    for mask in masks]  # fmt: skip
            return torch.tensor(sums)

        indices = range(len(scan.members))
        return {
            member: 1.0 + r * min(_ratio(changed - own, own), alpha)
            for member, (changed, own) in zip(
                scan.members, scan.total(counts).tolist(), strict=True
            )
        }

    def merge(group: TensorGroup, factors: dict[str, float]) -> Tensor:
        base = base_of("ramplus_tl", group)
        total, more, changed = (torch.zeros_like(base) for _ in range(3))
        for index, (member, weight) in enumerate(zip(group.members, group.weights, strict=True)):
            if weight:
                kept = changes(group, index, epsilon)
                total.add_(kept, alpha=weight)
                more.add_(kept, alpha=weight * (factors[member] - 1.0))
                changed.add_(kept.abs_().sign_())
        own = more.mul_(_changed_once(changed))
        return moved(base, total.div_(changed.clamp_min_(1.0)).add_(own))

    return Passes(merge, survey)


def changes(group: TensorGroup, index: int, epsilon: float) -> Tensor:
    """A member's task vector, turned round, with zeros for what hardly changed."""
    return F.hardshrink(reversed_delta(group, index), epsilon)


def _changed_once(changed: Tensor) -> Tensor:
    """1 where one member changed something, 0 where several did; 1 where nobody did."""
    return (2.0 - changed).clamp_(0.0, 1.0)


def _ratio(shared: float, own: float) -> float:
    if own:
        return shared / own
    return float("inf") if shared else 0.0
