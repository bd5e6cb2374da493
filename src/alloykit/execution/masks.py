"""Infinities on which all members agree, such as attention masks hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fixed:
    """Elements that are copied, not computed with.

    Attributes:
        where: Which of the elements, flat.
        values: What they are, one after the other.
    """

    where: Tensor
    values: Tensor


def cut_mask(fixed: Fixed | None, start: int, stop: int) -> Fixed | None:
    """What of the fixed elements lies in a range, or None."""
    if fixed is None:
        return None
    where = fixed.where[start:stop]
    skipped = int(fixed.where[:start].sum())
    count = int(where.sum())
    return Fixed(where, fixed.values[skipped : skipped + count]) if count else None
