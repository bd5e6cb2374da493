"""What a merge method's parameters may be, and the text of each refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alloykit.errors import InvalidParameter, did_you_mean


def require_number(
    method: str,
    parameter: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    hint: str = "",
) -> None:
    """Refuse what is not a finite number in [low, high].

    Args:
        method: The method that takes it.
        parameter: The parameter's name.
        value: What was given.
        low: Smallest number allowed.
        high: Largest number allowed.
        hint: A sentence that says how to go on.

    Raises:
        InvalidParameter: The text of the refusal.

    Example:
        >>> require_number("slerp", "t", 0.5, low=0.0, high=1.0)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high:
        return
    span = _span(low, high)
    raise InvalidParameter(
        f"The '{parameter}' parameter of {method} must be {span}. Got {value!r}."
        + (f" ({hint})" if hint else "")
    )


def _span(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a finite number, at least {low:g}"
    return f"a number in [{low:g}, {high:g}]"


def require_choice(
    method: str, parameter: str, value: str | None, choices: Sequence[str | None]
) -> None:
    """Refuse what is not one of the choices.

    Args:
        method: The method that takes it.
        parameter: The parameter's name.
        value: What was given.
        choices: What it may be.

    Raises:
        InvalidParameter: The text of the refusal.

    Example:
        >>> require_choice("karcher", "compat", None, (None, "mergekit"))
    """
    if value in choices:
        return
    words = [choice for choice in choices if choice is not None]
    listed = " or ".join([repr(word) for word in words] + (["None"] if None in choices else []))
    raise InvalidParameter(
        f"The '{parameter}' parameter of {method} must be {listed}. Got {value!r}."
        f"{did_you_mean(str(value), words)}"
    )


def require_compat(method: str, value: str | None) -> None:
    """Refuse a ``compat`` other than None and "mergekit"."""
    require_choice(method, "compat", value, (None, "mergekit"))
