"""Consensus task arithmetic: only elements that matter to several tasks are added."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.merging.contract import merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import moved, per_member, require_numbers, task_vectors
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"tall_mask_lambda"}),
    paper="Wang et al., Localizing task information for improved model merging and compression, "
    "2024, arXiv:2405.07813.",
)
def consensus(
    tall_mask_lambda: float | list[float] = 0.4, k: int = 2, scale: float = 1.0
) -> Callable[[TensorGroup], Tensor]:
    """Add up the task vectors, but only in the elements that matter to at least k tasks.

    τ = Σ wᵢ·δᵢ
    mᵢ = 1 where |wᵢ·δᵢ| > tall_mask_lambdaᵢ · |τ − wᵢ·δᵢ|, 0 elsewhere (TALL masks)
    merged = base + scale · τ where Σ mᵢ ≥ k, base elsewhere

    Use it when several fine-tunes of one base for different tasks are added up: elements that
    serve one task alone disturb the others, and those that serve none are noise.

    Args:
        tall_mask_lambda: How large a task's element must be beside that of all others together to
            matter to it, at least 0, one number or one per member: larger values keep less. The
            authors choose among 0.2 to 0.6 for each task on validation data; default 0.4.
        k: To how many tasks an element must matter, a whole number of at least 1. The default 2
            is the authors' choice; 1 adds all that matters to anybody.
        scale: Length of the step, any finite number. Default 1; choose it on validation data, as
            for ``task_arithmetic``.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. At least k members; with fewer, nothing is added. Weights are factors, 1 by default.

    Raises:
        InvalidParameter: A parameter out of its range, or a list for another number of members.

    Example:
        >>> import torch
        >>> members = (torch.tensor([1.0, 5.0, 0.1]), torch.tensor([1.0, 0.5, 4.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(3))
        >>> consensus().merge(group, None)
        tensor([2., 0., 0.])

    References:
        Wang et al., Localizing task information for improved model merging and compression, 2024,
        arXiv:2405.07813, sections 4 and 5. Differs in the weights, which the paper does not have.
    """
    require_numbers("consensus", "tall_mask_lambda", tall_mask_lambda, low=0.0, high=1e30)
    require_number("consensus", "scale", scale)
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidParameter(
            f"The 'k' parameter of consensus must be a whole number, at least 1. Got {k!r}. "
            "(It is the number of tasks that an element must matter to.)"
        )

    def merge(group: TensorGroup) -> Tensor:
        base = base_of("consensus", group)
        count = len(group.tensors)
        every = per_member("consensus", "tall_mask_lambda", tall_mask_lambda, count)
        lambdas = [each for each, weight in zip(every, group.weights, strict=True) if weight]
        vectors = [delta.mul_(weight) for weight, delta in task_vectors(group)]
        total, matters = torch.zeros_like(base), torch.zeros_like(base)
        for vector in vectors:
            total.add_(vector)
        for vector, factor in zip(vectors, lambdas, strict=True):
            others = (total - vector).abs_()
            matters.add_(vector.abs_().sub_(others, alpha=factor).sign_().clamp_min_(0.0))
        agreed = matters.sub_(k - 1.0).clamp_(0.0, 1.0)
        return moved(base, total.mul_(agreed), scale)

    return merge
