"""Task arithmetic: add what fine-tunes learned to their base, or take it away."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from alloykit.errors import InvalidWeights
from alloykit.merging.contract import merge_method
from alloykit.merging.gram import affine, base_of
from alloykit.merging.ranges import require_number
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    linear=True,
    paper="Ilharco et al., Editing models with task arithmetic, 2022, arXiv:2212.04089.",
)
def task_arithmetic(scale: float = 1.0, normalize: bool = False) -> Callable[[TensorGroup], Tensor]:
    """Add the members' task vectors to the base; a negative weight makes a model forget a task.

    merged = base + scale · Σ wᵢ · (memberᵢ − base), divided by Σ wᵢ with ``normalize``

    Use it for fine-tunes of one base on different tasks. Choose the scale on validation data
    (``tune``): with several members 0.3 to 0.5 is often better than 1, and the choice moves the
    result more than the choice of another method does.

    Args:
        scale: What the sum of task vectors is multiplied by, any finite number; mergekit calls
            it lambda. The default 1 adds them whole.
        normalize: Whether to divide the sum by the sum of the weights: the mean of the task
            vectors rather than their sum. Off by default, as in the paper and in mergekit.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. Weights are used as they are, of either sign, 1 each by default.

    Raises:
        InvalidParameter: scale is not a finite number.
        InvalidWeights: Weights to be normalised sum to zero.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([3.0]), torch.tensor([2.0]))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (1.0, -1.0), base=torch.ones(1))
        >>> task_arithmetic(scale=0.5).merge(group, None)
        tensor([1.5000])

    References:
        Ilharco et al., Editing models with task arithmetic, 2022, arXiv:2212.04089, section 2.
        mergekit agrees; where weights to be normalised sum to zero it leaves them as they are.
    """
    require_number("task_arithmetic", "scale", scale)

    def merge(group: TensorGroup) -> Tensor:
        total = math.fsum(group.weights) if normalize else 1.0
        if not total:
            raise InvalidWeights(
                f"task_arithmetic was to divide by the sum of the weights {group.weights}, and "
                "that is 0. Change a weight, or leave out normalize."
            )
        steps = [scale * weight / total for weight in group.weights]
        base = base_of("task_arithmetic", group)
        return affine((base, *group.tensors), (1.0 - math.fsum(steps), *steps), coarse=group.coarse)

    return merge
