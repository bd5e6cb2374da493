"""RAM: elements that several members changed are averaged, those that one changed are added."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import moved, task_vectors
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Yuan et al., Behavior knowledge merge in reinforced agentic models, 2026, "
    "arXiv:2601.13572.",
)
def ram(epsilon: float = 1e-5) -> Callable[[TensorGroup], Tensor]:
    """Average what several members changed, and add in full what only one of them changed (RAM).

    mᵢ = 1 where |δᵢ| > epsilon, 0 elsewhere
    merged = base + Σ wᵢ·mᵢ·δᵢ / Σ mᵢ

    Use it for models that were trained from one base by reinforcement learning on different
    tasks: they change few elements, mostly not the same ones, and averaging over all members
    would dilute what each learned.

    Args:
        epsilon: Size of a change that does not count as one, at least 0, in the unit of the
            weights. The default 1e-5 is the authors'.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default, which the paper does not
        have: they multiply task vectors and do not change what is divided by.

    Raises:
        InvalidParameter: epsilon is negative or not finite.

    Example:
        >>> import torch
        >>> members = (torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(3))
        >>> ram().merge(group, None)
        tensor([2., 2., 0.])

    References:
        Yuan et al., Behavior knowledge merge in reinforced agentic models, 2026,
        arXiv:2601.13572, section 4. Differs in nothing from the authors' code; ``ramplus_tl`` is
        RAM+. mergekit agrees.
    """
    require_number("ram", "epsilon", epsilon, low=0.0)

    def merge(group: TensorGroup) -> Tensor:
        base = base_of("ram", group)
        total, changed = torch.zeros_like(base), torch.zeros_like(base)
        for weight, delta in task_vectors(group):
            kept = F.hardshrink(delta, epsilon)
            total.add_(kept, alpha=weight)
            changed.add_(kept.abs_().sign_())
        return moved(base, total.div_(changed.clamp_min_(1.0)))

    return merge
