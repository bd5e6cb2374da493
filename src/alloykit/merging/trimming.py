"""Keeping the elements of task vectors whose magnitudes lie in a band of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.merging.ranges import require_compat
from alloykit.merging.selection import kth_largest
from alloykit.merging.task_vectors import (
    Numbers,
    Sparsify,
    just_below,
    l1_gains,
    per_member,
    require_density,
    require_numbers,
    reversed_delta,
)
from alloykit.types import Scan, TensorGroup


@dataclass(frozen=True)
class Band:
    """What is kept of one member's task vector.

    Attributes:
        low: The smallest magnitude that is kept.
        high: The largest.
        gain: What the kept elements are multiplied by.
    """

    low: float
    high: float = math.inf
    gain: float = 1.0


Bands = dict[str, Band]
"""Member -> band."""

EVERYTHING, NOTHING = Band(0.0), Band(math.inf)


@dataclass(frozen=True)
class Trimming:
    """Which elements of each task vector are kept: a share of them, below the largest ones.

    Args:
        method: The method that it is for.
        density: Fraction kept, in [0, 1], one number or one per member.
        gamma: Fraction of the largest that is left out, in [0, 1], one number or one per member;
            less of them where there would not be enough left to keep.
        rescale: Whether what is kept is multiplied by what gives it back its L1 norm.
        compat: "mergekit" rounds numbers of elements down, instead of to the nearest.
        least: How many elements are kept at least, unless the density is 0.
    """

    method: str
    density: Numbers
    gamma: Numbers = 0.0
    rescale: bool = False
    compat: str | None = None
    least: int = 1

    def __post_init__(self) -> None:
        require_compat(self.method, self.compat)
        require_density(self.method, self.density)
        hint = "It is the fraction of outliers that is left out: 1 % is 0.01."
        require_numbers(self.method, "gamma", self.gamma, low=0.0, high=1.0, hint=hint)

    @property
    def survey(self) -> Callable[[Scan], Bands] | None:
        """Finds the bands; None where everything is kept."""
        densities = self.density if isinstance(self.density, list) else [self.density]
        return self.bands if min(densities, default=1.0) < 1.0 else None

    def bands(self, scan: Scan) -> Bands:
        """The bands of all members, of a tensor or of a whole model."""
        count = len(scan.members)
        densities = per_member(self.method, "density", self.density, count)
        gammas = per_member(self.method, "gamma", self.gamma, count)
        wanted = [self._ranks(*each, scan.numel) for each in zip(densities, gammas, strict=True)]
        rows = [partial(reversed_delta, index=index) for index in range(count)]
        found = kth_largest(scan, rows, [[] if isinstance(w, Band) else w for w in wanted])
        bands = {
            member: ranks if isinstance(ranks, Band) else Band(*ends)
            for member, ranks, ends in zip(scan.members, wanted, found, strict=True)
        }
        if not self.rescale:
            return bands
        gains = l1_gains(scan, self.sparsify(bands))
        return {member: replace(band, gain=gains[member]) for member, band in bands.items()}

    def _ranks(self, density: float, gamma: float, numel: int) -> Band | list[int]:
        """The ranks of the smallest and, where any are left out, of the largest one kept."""
        whole = math.floor if self.compat else round
        kept, outliers = whole(density * numel), whole(gamma * numel)
        if density >= 1.0 or not numel:
            return EVERYTHING
        if density > 0.0:
            kept = max(self.least, kept)
        if not kept:
            return NOTHING
        outliers = min(outliers, numel - kept)
        return [outliers + kept, outliers + 1] if outliers else [outliers + kept]

    def sparsify(self, bands: Bands | None) -> Sparsify:
        """The thinning out, given the bands that a survey found."""
        return partial(in_band, bands)


def in_band(bands: Bands | None, delta: Tensor, index: int, group: TensorGroup) -> Tensor:
    """Zeros for the elements outside the member's band; everything without bands."""
    band = EVERYTHING if bands is None else bands[group.members[index]]
    if band == EVERYTHING:
        return delta
    outliers = F.hardshrink(delta, band.high) if band.high < math.inf else None
    kept = torch.hardshrink(delta, just_below(band.low, delta.dtype), out=delta)
    if outliers is not None:
        kept.sub_(outliers)
    return kept if band.gain == 1.0 else kept.mul_(band.gain)
