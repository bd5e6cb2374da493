"""Task vectors: taken, thinned out, elected by sign, summed, and added to the base again.

All of them are taken turned round here, as base − member: subtracting their sum from the base then
keeps the sign of a zero that all have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.merging.ranges import require_number
from alloykit.types import Scan, TensorGroup

Weighted = Iterable[tuple[float, Tensor]]
"""Weights of members and their task vectors, one after the other, so that few are held at once."""

Numbers = float | Sequence[float]
"""One number, or one per member."""


class Sparsify(Protocol):
    """What thins out one member's task vector, which it may overwrite."""

    def __call__(self, delta: Tensor, index: int, group: TensorGroup) -> Tensor:
        """The task vector of the member at ``index``, with zeros where it was dropped."""


def require_numbers(
    method: str, parameter: str, value: Numbers, *, low: float, high: float, hint: str = ""
) -> None:
    """Refuse what is neither a number in [low, high] nor a list of such numbers.

    Raises:
        InvalidParameter: The text of the refusal.
    """
    for each in value if isinstance(value, Sequence) else [value]:
        require_number(method, parameter, each, low=low, high=high, hint=hint)


def require_density(method: str, value: Numbers) -> None:
    """Refuse densities outside [0, 1]."""
    hint = "It is the fraction kept: 20 % is 0.2."
    require_numbers(method, "density", value, low=0.0, high=1.0, hint=hint)


def per_member(method: str, parameter: str, value: Numbers, count: int) -> tuple[float, ...]:
    """One number for each of so many members.

    Raises:
        InvalidParameter: The list has another length.

    Example:
        >>> per_member("ties", "density", 0.2, 3)
        (0.2, 0.2, 0.2)
    """
    if not isinstance(value, Sequence):
        return (float(value),) * count
    if len(value) != count:
        raise InvalidParameter(
            f"The '{parameter}' parameter of {method} has {len(value)} numbers for {count} models. "
            "Give one number, or one for each model."
        )
    return tuple(map(float, value))


def reversed_delta(group: TensorGroup, index: int) -> Tensor:
    """Base − member: the member's task vector turned round."""
    assert group.base is not None
    return group.base - group.tensors[index]


def task_vectors(
    group: TensorGroup, sparsify: Sparsify | None = None
) -> Iterator[tuple[float, Tensor]]:
    """The weights and thinned-out task vectors, turned round, of the members that have weight."""
    for index, weight in enumerate(group.weights):
        if weight:
            delta = reversed_delta(group, index)
            yield weight, delta if sparsify is None else sparsify(delta, index, group)


def weighted_sum(vectors: Weighted, like: Tensor, *, normalize: bool = False) -> Tensor:
    """Σ wᵢ·δᵢ, or with ``normalize`` Σ wᵢ·δᵢ / Σ wᵢ.

    Weights that cancel to less than 1e-8 are not divided by.

    Args:
        vectors: Weights and task vectors ``[*shape]``.
        like: A tensor of the shape and dtype of the result.
        normalize: Whether to divide.
    """
    total, weights = torch.zeros_like(like), 0.0
    for weight, vector in vectors:
        total.add_(vector, alpha=weight)
        weights += weight
    return total.div_(weights) if normalize and abs(weights) >= 1e-8 else total


def elected_sum(
    vectors: Weighted, like: Tensor, *, normalize: bool, compat: str | None = None
) -> Tensor:
    """For each element the sum, or mean, over the members that agree with the elected sign.

    γ = sign(Σ wᵢ·δᵢ)
    result = Σ wᵢ·δᵢ over the members with sign(wᵢ·δᵢ) = γ; with ``normalize`` over Σ |wᵢ| of them

    Where the votes balance, nobody agrees with the sign 0, and the result is 0. Members that say 0
    never agree. A negative weight votes for the opposite of what its task vector says.

    Args:
        vectors: Weights and task vectors ``[*shape]``, turned round; they are overwritten.
        like: A tensor of the shape and dtype of the result.
        normalize: Whether to take the mean.
        compat: With "mergekit" balanced votes count as positive, and the mean divides by the sum
            of the weights, signs included, where that is not zero.

    References:
        Yadav et al., TIES-Merging, 2023, arXiv:2306.01708, section 3, steps 2 and 3. The authors'
        code gives balanced votes the sign of the majority of the whole model's elements instead.
    """
    weights, present = [], []
    for weight, vector in vectors:
        weights.append(weight)
        # Rounded before they are added: a fused sum would find votes that balance uneven.
        present.append(vector if weight == 1.0 else vector.mul_(weight))
    sign = elected_sign(present, like, compat)
    counted = [weight if compat else abs(weight) for weight in weights]
    total, heads = agreeing_sums(present, sign, counted if normalize else None)
    if normalize:
        total.div_(_divisible(heads, counted))
    return total.mul_(sign)


def elected_sign(vectors: Iterable[Tensor], like: Tensor, compat: str | None = None) -> Tensor:
    """The sign of a sum of task vectors turned round: 1, −1 or 0, which "mergekit" does not know.

    Example:
        >>> vectors = [torch.tensor([2.0, -1.0]), torch.tensor([-1.0, 1.0])]
        >>> elected_sign(vectors, torch.zeros(2)), elected_sign(vectors, torch.zeros(2), "mergekit")
        (tensor([1., 0.]), tensor([ 1., -1.]))
    """
    total = torch.zeros_like(like)
    for vector in vectors:
        total.add_(vector)
    # Turned round, its positive for balanced votes is negative.
    return total.sign_().clamp_min_(0.0).mul_(2.0).sub_(1.0) if compat else total.sign_()


def agreeing_sums(
    vectors: Iterable[Tensor], sign: Tensor, weights: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Σ |vᵢ| over the vectors that have that sign, and Σ wᵢ over them, zeros without weights.

    Args:
        vectors: ``[*shape]``; they are overwritten.
        sign: 1, −1 or 0 for each element.
        weights: One per vector.
    """
    total, heads = torch.zeros_like(sign), torch.zeros_like(sign)
    for index, vector in enumerate(vectors):
        agreeing = vector.mul_(sign).clamp_min_(0.0)
        total.add_(agreeing)
        if weights is not None:
            heads.add_(agreeing.sign_(), alpha=weights[index])
    return total, heads


def _divisible(heads: Tensor, weights: Sequence[float]) -> Tensor:
    """Sums of some of the weights, with something else for sums of none: there it divides 0."""
    smallest = min(weights, default=1.0)
    if smallest > 0.0:
        return heads.clamp_min_(smallest)
    return heads + (1.0 - heads.sign().abs_())


def moved(base: Tensor, reversed_total: Tensor, scale: float = 1.0) -> Tensor:
    """Base + scale · δ, given −δ; where that is 0 it is the base, signs of zeros included."""
    if scale >= 0.0:
        return torch.sub(base, reversed_total.add_(0.0), alpha=scale)
    return base - reversed_total.mul_(scale).add_(0.0)


def just_below(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of that dtype that is less than a positive ``threshold``; 0 for 0."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    nearest = kind(threshold)
    return float(nearest if float(nearest) < threshold else np.nextafter(nearest, kind(0.0)))


MOST = 1.0 - 2.0**-24
"""The largest number that ``TensorGroup.uniform`` gives; twice that is still less than 2."""


def kept_at_random(group: TensorGroup, index: int, probability: float | Tensor) -> Tensor:
    """1 with some probability and 0 otherwise, for each element of one member."""
    like = group.tensors[index]
    most = (
        probability.clamp_max(MOST) if isinstance(probability, Tensor) else min(probability, MOST)
    )
    return group.uniform(group.members[index]).to(like).add_(most).floor_()


def l1_gains(scan: Scan, sparsify: Sparsify) -> dict[str, float]:
    """By how much to multiply thinned-out task vectors to give them back their L1 norm.

    gain = Σ |δ| / Σ |sparsify(δ)|, or 1 where either sum is below 1e-7

    Args:
        scan: What to walk.
        sparsify: What thins out.

    Returns:
        Member -> gain.
    """

    def norms(group: TensorGroup) -> Tensor:
        sums = []
        for index in range(len(group.tensors)):
            delta = reversed_delta(group, index)
            before = delta.abs().sum(dtype=torch.float64)
            after = sparsify(delta, index, group).abs_().sum(dtype=torch.float64)
            sums.append(torch.stack([before, after]))
        return torch.stack(sums)

    return {
        member: before / after if before >= 1e-7 and after >= 1e-7 else 1.0
        for member, (before, after) in zip(scan.members, scan.total(norms).tolist(), strict=True)
    }
