"""The weighted mean of members, in each space where a mean makes sense."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from alloykit.ensembling.rule import CLASSES, VALUES
from alloykit.errors import InvalidParameter
from alloykit.numerics import compute_dtype
from alloykit.types import Task

Space = Literal["probabilities", "logits", "geometric", "values"]

_TASKS: dict[str, frozenset[Task]] = {
    "probabilities": CLASSES,
    "logits": CLASSES,
    "geometric": CLASSES,
    "values": VALUES,
}


def tasks_of(space: str) -> frozenset[Task]:
    """The tasks that a space serves.

    Raises:
        InvalidParameter: There is no such space.
    """
    if space not in _TASKS:
        raise InvalidParameter(
            f"The 'space' parameter must be one of {', '.join(_TASKS)}. Got {space!r}."
        )
    return _TASKS[space]


def pool(stack: Tensor, weights: Tensor | None, space: str) -> Tensor:
    """The mean of the members, weighted by numbers that sum to one, or plain for None.

    probabilities: log Σ wₘ pₘ; logits, geometric: log_softmax(Σ wₘ log pₘ); values: Σ wₘ xₘ

    The computation has no step that depends on the data, so that it can be exported.

    Shapes:
        stack [member, example, *output], weights [member] -> [example, *output]

    Example:
        >>> import torch
        >>> sure = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> pool(sure, None, "probabilities").exp()
        tensor([[0.7000, 0.3000]])
    """
    stack = stack.to(compute_dtype(stack.dtype))
    if weights is None:
        weights = stack.new_full((len(stack),), 1.0 / len(stack))
    weights = weights.to(stack).view(-1, *(1,) * (stack.ndim - 1))
    if space == "probabilities":
        return (stack + weights.log()).logsumexp(0)
    # Differences from the first member: equal members then give exactly that member.
    mean = stack[0] + (weights * (stack - stack[0])).sum(0)
    return mean if space == "values" else mean.log_softmax(-1)
