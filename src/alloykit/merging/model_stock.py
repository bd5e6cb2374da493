"""Model Stock: how far from the base towards the mean, from the angle between task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.errors import InvalidWeights
from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import affine, base_of, line_products, lines_of, task_vector_products
from alloykit.merging.ranges import require_compat
from alloykit.numerics import weighted_mean
from alloykit.types import Scan, TensorGroup

MERGEKITS_FLOOR = 1e-6
"""What mergekit takes for a smaller product of lengths, and for a smaller denominator as zero."""


def ratio(cosine: Tensor, weights: Sequence[float], *, like_mergekit: bool = False) -> Tensor:
    """The share of the mean: cos θ / (cos θ + s·(1 − cos θ)), s = Σ wᵢ², clamped to [0, 1].

    With n equal weights s is 1/n, and this is the paper's n·cos θ / (1 + (n−1)·cos θ). With
    unequal ones the same derivation holds: the mean of independent errors of one length is
    shorter by the factor s.

    Args:
        cosine: Mean cosine of the angles between task vectors, for each of them.
        weights: Non-negative, summing to one.
        like_mergekit: Do not clamp; 0 where the denominator vanishes.

    Example:
        >>> ratio(torch.tensor([0.5, 1.0, -0.2]), (0.5, 0.5))
        tensor([0.6667, 1.0000, 0.0000])
    """
    concentration = math.fsum(weight * weight for weight in weights)
    if like_mergekit:
        below = (cosine + concentration * (1.0 - cosine)) / concentration
        singular = below.abs() < MERGEKITS_FLOOR
        return (cosine / concentration / below.masked_fill(singular, 1.0)).masked_fill(singular, 0)
    cosine = cosine.clamp(0.0, 1.0)
    return cosine / (cosine + concentration * (1.0 - cosine))


def mean_cosine(
    products: Tensor, weights: Sequence[float], *, like_mergekit: bool = False
) -> Tensor:
    """Mean over the pairs of vectors of the cosine of their angle, pairs weighing wᵢ·wⱼ.

    Pairs with a vector of length zero have no angle: they count as at a right angle, as a member
    that did not move says nothing about where the centre lies.

    Args:
        products: Inner products of the vectors.
        weights: One per vector.
        like_mergekit: Take 1e-6 for a smaller product of two lengths.

    Shapes:
        products [*, vector, vector] -> [*]
    """
    squares = torch.diagonal(products, dim1=-2, dim2=-1).clamp(min=0.0)
    lengths = squares.sqrt()
    scale = lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
    scale = scale.clamp(min=MERGEKITS_FLOOR) if like_mergekit else scale.masked_fill(scale == 0, 1)
    cosines = (products / scale).clamp(-1.0, 1.0)
    share = torch.tensor(weights, dtype=products.dtype, device=products.device)
    pairs = torch.outer(share, share).fill_diagonal_(0.0)
    return (cosines * pairs).sum((-2, -1)) / pairs.sum()


@merge_method(
    needs=frozenset({"base"}),
    members=range(2, 10_000),
    paper="Jang, Yun and Han, Model Stock, 2024, arXiv:2403.19522.",
)
def model_stock(filter_wise: bool = False, compat: str | None = None) -> Passes:
    """Go from the base towards the mean as far as the angle between the task vectors says.

    merged = t·mean + (1 − t)·base, t = n·cos θ / (1 + (n−1)·cos θ) in [0, 1]

    θ is the angle between two task vectors (member − base), for each tensor; for more than two,
    cos θ is the mean over the pairs. Where fine-tunes agree t is 1; where they are at right
    angles it is 0.

    Use it for a few fine-tunes of one base on one task, such as two runs with different seeds.
    Fine-tunes on different tasks are nearly at right angles: it returns almost the base.

    Args:
        filter_wise: Whether every slice of the first dimension (the weights of one output unit)
            has its own angle. The authors' code uses one per tensor, as is done by default.
        compat: "mergekit" reproduces mergekit's numbers, see the references.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. Two or more members. Weights are used in the mean and in t, which for equal ones is
        the paper's.

    Raises:
        InvalidParameter: An unknown compat.
        InvalidWeights: Fewer than two members have a weight.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5), base=torch.zeros(2))
        >>> model_stock().merge(group, 0.5)
        tensor([0.5000, 0.2500])

    References:
        Jang, Yun and Han, Model Stock: All we need is just a few fine-tuned models, 2024,
        arXiv:2403.19522. Differs from mergekit, which ``compat`` reproduces: t is clamped to
        [0, 1] (mergekit goes past the base where cosines are negative); small tensors have their
        own angle (mergekit takes 1e-6 for a smaller product of lengths, which pulls small task
        vectors towards the base); and a filter is a slice of the first dimension (in mergekit a
        line of the last one, of three numbers for a 3×3 convolution).
    """
    require_compat("model_stock", compat)

    def share(products: Tensor, weights: Sequence[float]) -> Tensor:
        cosine = mean_cosine(products, weights, like_mergekit=bool(compat))
        return ratio(cosine, weights, like_mergekit=bool(compat))

    def survey(scan: Scan) -> float:
        _require_pairs(scan.weights)
        products = torch.from_numpy(task_vector_products(scan))
        return float(share(products, scan.weights))

    def factors(weights: Sequence[float], t: float) -> tuple[float, ...]:
        return (1.0 - t, *(t * weight for weight in weights))

    def merge(group: TensorGroup, t: float) -> Tensor:
        base = base_of("model_stock", group)
        return affine((base, *group.tensors), factors(group.weights, t), coarse=group.coarse)

    def merge_rows(group: TensorGroup, _: None) -> Tensor:
        _require_pairs(group.weights)
        base = base_of("model_stock", group)
        if not base.numel():
            return base.clone()
        lines = _line_shape(base, last=bool(compat))
        t = share(line_products(lines_of(group, lines)), group.weights)
        short = (1.0 - t).to(base.dtype).unsqueeze(1)
        mean = weighted_mean([tensor.reshape(lines) for tensor in group.tensors], group.weights)
        way = mean - base.reshape(lines)
        return torch.addcmul(mean, way, short, value=-1).reshape(base.shape)

    if filter_wise:
        return Passes(merge=merge_rows, unit="row")
    return Passes(merge=merge, survey=survey, factors=factors)


def _line_shape(tensor: Tensor, *, last: bool) -> tuple[int, int]:
    """Filters as lines: slices of the first dimension, or lines of the last; a vector is one."""
    if tensor.dim() < 2:
        return 1, -1
    return (-1, tensor.shape[-1]) if last else (tensor.shape[0], -1)


def _require_pairs(weights: Sequence[float]) -> None:
    count = sum(weight > 0.0 for weight in weights)
    if count < 2:
        raise InvalidWeights(
            f"model_stock compares at least two models, and {count} has a weight that is not "
            "zero. Give two models weights, or use interpolate for one."
        )
