"""Arithmetic said once: compute dtypes, weights, sums and the one rounding at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import InvalidWeights, listing

SUM_TOLERANCE = 1e-6

SAFE_SQUARES = (1e-25, 1e30)
"""Squared lengths whose products float32 holds without loss; others are taken in float64."""

SMALL_VECTOR = 4096
"""Vectors of at most so many elements are multiplied in float64 at once."""


def is_averaged(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype are averaged (floating or complex) rather than resolved."""
    return dtype.is_floating_point or dtype.is_complex


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32 (float64 where the input is); complex accordingly.

    Example:
        >>> compute_dtype(torch.bfloat16), compute_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all of these; unequal float8 formats meet in float32.

    Unequal integers of which one is a wide unsigned one, which torch does not promote, meet in
    int64.

    Example:
        >>> promoted([torch.bfloat16, torch.float16])
        torch.float32
    """
    every = list(dict.fromkeys(dtypes))
    if len(every) == 1:
        return every[0]
    return reduce(torch.promote_types, [_promotable(dtype) for dtype in every])


def _promotable(dtype: torch.dtype) -> torch.dtype:
    if dtype in (torch.uint16, torch.uint32, torch.uint64):
        return torch.int64
    return torch.float32 if dtype.is_floating_point and dtype.itemsize == 1 else dtype


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is one real number, NaN and infinity included; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is one whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def normalised(
    weights: Sequence[float] | None, count: int, *, strict: bool = False
) -> tuple[float, ...]:
    """Mixing weights that sum to one, from weights by hand.

    Args:
        weights: One non-negative, finite number per member; None means uniform.
        count: Number of members.
        strict: Refuse weights whose sum differs from one by more than 1e-6, instead of dividing
            by their sum.

    Raises:
        InvalidWeights: Wrong count, NaN, infinite, negative, all zero, or a wrong sum when strict.

    Example:
        >>> normalised([2, 1, 1], 3)
        (0.5, 0.25, 0.25)
    """
    if weights is None:
        return (1.0 / count,) * count
    given = [float(weight) for weight in weights]
    wrong = []
    if len(given) != count:
        wrong.append(f"{len(given)} weights for {count} models")
    wrong += [f"weight {i + 1} is {w}" for i, w in enumerate(given) if not math.isfinite(w)]
    wrong += [f"weight {i + 1} is negative: {w}" for i, w in enumerate(given) if w < 0]
    finite = all(map(math.isfinite, given))
    # The sum of very large weights would leave the range of floats.
    unit = 1e300 if finite and max(map(abs, given), default=0.0) > 1e300 else 1.0
    shares = [weight / unit for weight in given]
    total = math.fsum(shares) if finite else math.nan
    if given and not any(given):
        wrong.append("all weights are zero")
    elif strict and not wrong and abs(total * unit - 1.0) > SUM_TOLERANCE:
        wrong.append(f"they sum to {total * unit:.9g}, and a sum of one was asked for")
    if wrong:
        raise InvalidWeights(
            f"These weights cannot be used:\n{listing(wrong)}\n"
            "Give one finite, non-negative number per model."
        )
    return tuple(share / total for share in shares)


def factors(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Mixing weights that are used as they are: any finite numbers, one each where none are given.

    Raises:
        InvalidWeights: Wrong count, NaN, infinite, or all zero.

    Example:
        >>> factors([1, -0.5], 2), factors(None, 2)
        ((1.0, -0.5), (1.0, 1.0))
    """
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    wrong = []
    if len(given) != count:
        wrong.append(f"{len(given)} weights for {count} models")
    wrong += [f"weight {i + 1} is {w}" for i, w in enumerate(given) if not math.isfinite(w)]
    if given and not any(given):
        wrong.append("all weights are zero")
    if wrong:
        raise InvalidWeights(
            f"These weights cannot be used:\n{listing(wrong)}\nGive one finite number per model."
        )
    return tuple(given)


def weighted_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, coarse: bool = False
) -> Tensor:
    """Σ wᵢ·xᵢ for weights that sum to one, as the heaviest tensor less weighted differences to it.

    Written that way equal tensors give exactly that tensor, signs of zeros included, whatever the
    weights; and the rounding error is that of the terms wᵢ·xᵢ, not of a large tensor of small
    weight. Members of weight zero are left out, so that their values cannot matter.

    Args:
        tensors: One per member, ``[*shape]``, in a compute dtype; not modified.
        weights: One per member, summing to one.
        coarse: Sum the products themselves, which is faster: where the result is rounded to half
            the digits afterwards, equal tensors still give exactly that tensor.

    Shapes:
        tensors [member, *shape] -> [*shape]
    """
    present = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    if len(present) == 1:
        return present[0][0].clone()
    if coarse:
        total = torch.mul(*present.pop(0))
        for tensor, weight in present:
            total.add_(tensor, alpha=weight)
        return total
    heaviest = max(range(len(present)), key=lambda i: present[i][1])
    origin = present.pop(heaviest)[0]
    first, weight = present.pop(0)
    total = torch.sub(origin, origin - first, alpha=weight)
    for tensor, weight in present:
        total.sub_(origin - tensor, alpha=weight)
    return total


def inner_products(vectors: Sequence[Tensor]) -> Tensor:
    """All inner products of some vectors, as float64.

    Float32 vectors are multiplied in float32, whose dot product sums many partial sums: on a
    block of 65,536 elements the error is 5e-8 of the lengths' product, about that of one rounding
    to float32, and falls with the number of blocks. Float64 takes four times as long.

    Args:
        vectors: One-dimensional, float32 or float64, of one length.

    Shapes:
        vectors vector * [element] -> [vector, vector]

    Example:
        >>> inner_products([torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])])
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    if vectors[0].numel() > SMALL_VECTOR or vectors[0].dtype == torch.float64:
        products = _products(vectors)
        squares = np.diagonal(products)
        if not (squares.min() < SAFE_SQUARES[0] or squares.max() > SAFE_SQUARES[1]):
            return torch.from_numpy(products)
    return torch.from_numpy(_products([vector.double() for vector in vectors]))


def _products(vectors: Sequence[Tensor]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    count = len(vectors)
    products = np.empty((count, count))
    for i in range(count):
        for j in range(i, count):
            products[i, j] = products[j, i] = torch.dot(vectors[i], vectors[j]).item()
    return products


def same_values(tensors: Sequence[Tensor]) -> bool:
    """Whether all hold the same values, in whatever precision; NaN is not even equal to itself."""
    wide = [t.to(compute_dtype(t.dtype)) if is_averaged(t.dtype) else t for t in tensors]
    return all(torch.equal(tensor, wide[0]) for tensor in wide)


def unusable_values(tensor: Tensor) -> str | None:
    """What is wrong with a tensor's values ("2 NaN, 1 Inf"), or None."""
    if not is_averaged(tensor.dtype) or tensor.numel() == 0:
        return None
    values = tensor if tensor.dtype.itemsize > 1 else tensor.float()
    if not values.is_complex():
        # One pass that carries NaN and infinities along, fifteen times as fast as isfinite.
        low, high = torch.aminmax(values)
        if math.isfinite(low) and math.isfinite(high):
            return None
    elif bool(torch.isfinite(values).all()):
        return None
    nan = int(torch.isnan(values).sum())
    inf = int(torch.isinf(values).sum())
    return ", ".join(f"{n} {word}" for n, word in ((nan, "NaN"), (inf, "Inf")) if n)
