"""The tensor in whatever a member returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alloykit.errors import DataError


def output_tensor(given: Any) -> Tensor:
    """A tensor as it is; the ``logits`` of an object or mapping that has them.

    Raises:
        DataError: Anything else.
    """
    found = given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", given)
    if not isinstance(found, Tensor):
        raise DataError(
            f"A member returns a {type(given).__name__} without logits. Wrap it in a module that "
            "returns one tensor, or an object with .logits."
        )
    return found
