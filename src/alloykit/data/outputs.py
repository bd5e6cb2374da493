"""The tensor in whatever a model returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alloykit.errors import DataError


def logits_of(given: Any) -> Any:
    """The logits in what a model gives: the thing itself, its ``logits``, or its entry of them."""
    return given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", given)


def output_tensor(given: Any) -> Tensor:
    """A tensor as it is; the ``logits`` of an object or mapping that has them.

    Raises:
        DataError: Anything else.
    """
    found = logits_of(given)
    if not isinstance(found, Tensor):
        raise DataError(
            f"The model gives a {type(given).__name__}, which has no logits. Wrap it in a module "
            "that returns one tensor, or an object with .logits."
        )
    return found
