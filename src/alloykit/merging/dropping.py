"""Dropping elements of task vectors at random, and making up for it (DARE, DELLA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import InvalidParameter, listing
from alloykit.merging.ranges import require_compat
from alloykit.merging.task_vectors import (
    Numbers,
    Sparsify,
    kept_at_random,
    l1_gains,
    per_member,
    require_density,
    require_numbers,
)
from alloykit.types import Scan, TensorGroup

Gains = dict[str, float]
"""Member -> what its thinned-out task vector is multiplied by."""


@dataclass(frozen=True)
class Dropping:
    """How task vectors are thinned out: m ∘ δ / p, where m is 1 with probability p and 0 otherwise.

    p is the density, or, with an epsilon, for the element of rank r among the n of its row,
    density + epsilon · (2·r/(n−1) − 1), r = 0 for the smallest magnitude and n−1 for the largest.

    Args:
        method: The method that it is for.
        density: Mean probability with which an element is kept, in [0, 1], one number or one per
            member.
        rescale: Whether what is kept is divided by its probability.
        compat: "mergekit" gives what is kept the L1 norm of the whole tensor instead of dividing.
        epsilon: By how much the probability may differ from the density, one number or one per
            member; None for not at all.
    """

    method: str
    density: Numbers
    rescale: bool
    compat: str | None
    epsilon: Numbers | None = None

    def __post_init__(self) -> None:
        require_compat(self.method, self.compat)
        require_density(self.method, self.density)
        if self.epsilon is not None:
            require_numbers(self.method, "epsilon", self.epsilon, low=0.0, high=0.5)
            self._require_probabilities(self.epsilon)

    def _require_probabilities(self, epsilon: Numbers) -> None:
        lengths = [len(each) for each in (self.density, epsilon) if isinstance(each, list)]
        if len(set(lengths)) > 1:
            raise InvalidParameter(
                f"The 'density' parameter of {self.method} has {lengths[0]} numbers, and 'epsilon' "
                f"has {lengths[1]}. Give one number, or one for each model."
            )
        count = max(lengths, default=1)
        densities = per_member(self.method, "density", self.density, count)
        epsilons = per_member(self.method, "epsilon", epsilon, count)
        wrong = [
            f"density {d:g}, epsilon {e:g}: {d - e:.4g} to {d + e:.4g}"
            for d, e in zip(densities, epsilons, strict=True)
            if 0.0 < d < 1.0 and not (d - e > 0.0 and d + e < 1.0)
        ]
        if wrong:
            raise InvalidParameter(
                f"The parameters of {self.method} give probabilities, density − epsilon to "
                f"density + epsilon, that are not between 0 and 1:\n{listing(wrong)}\n"
                "Give a smaller epsilon: less than the density, and less than 1 − density."
            )

    @property
    def survey(self) -> Callable[[Scan], Gains] | None:
        """What must be known of the whole tensor before: the gains, for compat alone."""
        if not (self.rescale and self.compat):
            return None
        return partial(l1_gains, sparsify=self.sparsify({}))

    def sparsify(self, gains: Gains | None) -> Sparsify:
        """The thinning out, given what a survey found."""
        return partial(self._dropped, gains or {})

    def _dropped(self, gains: Gains, delta: Tensor, index: int, group: TensorGroup) -> Tensor:
        count = len(group.tensors)
        density = per_member(self.method, "density", self.density, count)[index]
        if density in (0.0, 1.0):
            return delta if density else torch.zeros_like(delta)
        probability: float | Tensor = density
        if self.epsilon is not None:
            epsilon = per_member(self.method, "epsilon", self.epsilon, count)[index]
            along = 1 if self.compat and delta.dim() > 1 else None
            probability = rank_probabilities(delta, density, epsilon, along)
        kept = delta.mul_(kept_at_random(group, index, probability))
        if not self.rescale:
            return kept
        if self.compat:
            return kept.mul_(gains.get(group.members[index], 1.0))
        return (
            kept.mul_(1.0 / density) if isinstance(probability, float) else kept.div_(probability)
        )


def rank_probabilities(
    delta: Tensor, density: float, epsilon: float, along: int | None = None
) -> Tensor:
    """Probabilities that grow with the rank of the magnitude within its row.

    Args:
        delta: ``[rows, *shape]``; a vector or scalar is one row.
        density: Their mean.
        epsilon: How much less the smallest has, and how much more the largest.
        along: The dimension that ranks are counted along, instead of all but the first one.

    Example:
        >>> rank_probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.2)
        tensor([[0.7000, 0.3000, 0.5000]])
    """
    if not delta.numel():
        return torch.zeros_like(delta)
    if along is not None:
        turned = delta.movedim(along, -1)
        ranks = _ranks(turned.reshape(-1, delta.shape[along])).reshape(turned.shape)
        ranks, count = ranks.movedim(-1, along), delta.shape[along]
    else:
        rows = delta.reshape(len(delta), -1) if delta.dim() > 1 else delta.reshape(1, -1)
        ranks, count = _ranks(rows).reshape(delta.shape), rows.shape[1]
    if count == 1:
        return torch.full_like(delta, density)
    return ranks.mul_(2.0 * epsilon / (count - 1)).add_(density - epsilon)


def _ranks(rows: Tensor) -> Tensor:
    """For each element how many of its row are smaller in magnitude, or equal and before it."""
    magnitudes = rows.abs()
    positions = torch.arange(rows.shape[1], device=rows.device)
    if rows.dtype == torch.float32:
        # Sorting whole numbers of magnitude and position is several times as fast as argsort.
        bits = magnitudes.contiguous().view(torch.int32).long()
        keys = bits.bitwise_left_shift_(32).add_(positions).numpy(force=True)
        keys.sort(axis=-1)
        order = torch.from_numpy(keys & np.int64(0xFFFFFFFF)).to(rows.device)
    else:
        order = magnitudes.argsort(dim=-1, stable=True)
    return torch.empty_like(magnitudes).scatter_(
        -1, order, positions.to(rows.dtype).expand_as(rows)
    )
