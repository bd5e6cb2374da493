"""Fisher merging: every element averaged by how sure each member is of it."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.ranges import require_number
from alloykit.numerics import weighted_mean
from alloykit.types import Scan, TensorGroup

LEAST = 1e-30
"""Far above where products in float32 become zero, far below any Fisher information that counts."""


@merge_method(
    needs=frozenset({"fisher"}),
    paper="Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2021, "
    "arXiv:2111.09832.",
)
def fisher(floor: float = 1e-10, normalize: bool = False) -> Passes:
    """Average every element by how much each member's predictions depend on it (Fisher merging).

    merged = Σ wₜ·Fₜ·memberₜ / Σ wₜ·Fₜ, elementwise, with F = max(Fisher diagonal, floor)

    Use it when some hundred inputs of every member's task are at hand, no labels needed: collect
    Fisher diagonals with ``alloykit stats fisher`` first. Needs no base.

    Args:
        floor: Least Fisher information of an element, at least 0. Where all members are at the
            floor the result is their plain weighted mean. The default 1e-10 is far below what
            matters for the predictions, and above rounding noise.
        normalize: Divide every member's diagonal by its norm over the whole model first, for
            members of very unlike confidence; the floor applies afterwards. Off by default, as in
            the paper; where members are alike it can go either way.

    Shapes:
        members [member, *shape], fisher [member, *shape] -> [*shape]

    Needs:
        fisher: one diagonal per member, shaped like its tensors. Tensors without one, such as
        BatchNorm's buffers, are averaged.

    Raises:
        InvalidParameter: A floor below 0 or not finite.

    Example:
        >>> import torch
        >>> stats = {"fisher": (torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))}
        >>> tensors = (torch.zeros(2), torch.ones(2))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5), stats=stats)
        >>> fisher().merge(group, None)
        tensor([0.2500, 0.5000])

    References:
        Matena, Raffel: Merging Models with Fisher-Weighted Averaging, 2021, arXiv:2111.09832.
        Differs from the authors' code in the floor (1e-6 there). Implementations that square the
        gradient of a whole batch (MergeLM, FusionBench) keep cross terms between examples that
        the definition does not have; ``alloykit stats`` squares example by example.
    """
    require_number("fisher", "floor", floor, low=0.0)
    least = max(floor, LEAST)

    def merge(group: TensorGroup, norms: tuple[float, ...] | None) -> Tensor:
        diagonals = group.stats.get("fisher")
        if diagonals is None:
            return weighted_mean(group.tensors, group.weights)
        shares = []
        for index, (diagonal, weight) in enumerate(zip(diagonals, group.weights, strict=True)):
            wide = diagonal.to(group.tensors[0].dtype)
            wide = wide if norms is None else wide / norms[index]
            shares.append(wide.clamp_min(least).mul_(weight))
        total = reduce(torch.add, shares)
        merged = group.tensors[0].clone()
        for tensor, share in zip(group.tensors[1:], shares[1:], strict=True):
            # Differences to one member: equal members give exactly that member.
            merged.sub_(share.div_(total).mul_(group.tensors[0] - tensor))
        return merged

    def survey(scan: Scan) -> tuple[float, ...]:
        squares = scan.total(_squares)
        return tuple(math.sqrt(square) or 1.0 for square in squares.tolist())

    if normalize:
        return Passes(merge, survey, scope="model")
    return Passes(merge)


def _squares(group: TensorGroup) -> Tensor:
    diagonals = group.stats.get("fisher")
    if diagonals is None:
        return torch.zeros(len(group.tensors), dtype=torch.float64)
    return torch.stack([diagonal.double().square().sum() for diagonal in diagonals])
