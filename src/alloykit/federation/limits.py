"""What the parameters of aggregators may be, and how many clients a rule must see."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from alloykit.errors import InvalidParameter, MissingInput, listing
from alloykit.numerics import is_number, is_whole


def refuse(method: str, wrong: Iterable[str | None]) -> None:
    """Raise one error with all that is wrong; None stands for what is right.

    Raises:
        InvalidParameter: At least one text.

    Example:
        >>> refuse("fedavgm", [positive("server_learning_rate", 1.0), fraction("momentum", 0.9)])
    """
    texts = [text for text in wrong if text]
    if len(texts) == 1:
        raise InvalidParameter(
            f"The {texts[0].replace(' must', f' parameter of {method} must', 1)}"
        )
    if texts:
        raise InvalidParameter(f"These parameters of {method} cannot be used:\n{listing(texts)}")


def positive(name: str, value: Any, *, infinite: bool = False) -> str | None:
    """What is wrong with a number that must be above zero, or None."""
    if is_number(value) and value > 0 and (infinite or math.isfinite(value)):
        return None
    return f"'{name}' must be a {'' if infinite else 'finite '}number above 0. Got {value!r}."


def not_negative(name: str, value: Any) -> str | None:
    """What is wrong with a finite number that must be at least zero, or None."""
    if is_number(value) and value >= 0 and math.isfinite(value):
        return None
    return f"'{name}' must be a finite number, at least 0. Got {value!r}."


def fraction(name: str, value: Any) -> str | None:
    """What is wrong with a number that must be in [0, 1), or None."""
    if is_number(value) and 0 <= value < 1:
        return None
    return f"'{name}' must be a number, at least 0 and below 1. Got {value!r}."


def quantile(name: str, value: Any) -> str | None:
    """What is wrong with a number that must be in [0, 1], or None."""
    if is_number(value) and 0 <= value <= 1:
        return None
    return f"'{name}' must be a number in [0, 1]. Got {value!r}."


def whole(name: str, value: Any, low: int = 0) -> str | None:
    """What is wrong with a whole number that must be at least ``low``, or None."""
    if is_whole(value) and value >= low:
        return None
    return f"'{name}' must be a whole number, at least {low}. Got {value!r}."


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> str | None:
    """What is wrong with a value that must be one of these, or None."""
    if value in choices:
        return None
    return f"'{name}' must be {' or '.join(map(repr, choices))}. Got {value!r}."


def require_clients(method: str, num_malicious: int, times: int, count: int) -> None:
    """Refuse a round in which a rule sees fewer than times · num_malicious + 3 clients.

    Raises:
        InvalidParameter: There are too few; the text has all the numbers.
    """
    least = times * num_malicious + 3
    if count >= least:
        return
    fewer = f"num_malicious={(count - 3) // times}, or wait" if count >= 3 else "Wait"
    raise InvalidParameter(
        f"{method} with num_malicious={num_malicious} needs at least {least} clients "
        f"({times} · {num_malicious} + 3), and {count} count in this round. "
        f"{'Take at most ' if count >= 3 else ''}{fewer} for more clients: min_clients={least}."
    )


def known(value: float | None, what: str, client: str, method: str) -> float:
    """A number of a report that the method cannot do without.

    Raises:
        MissingInput: It is None.
    """
    if value is None:
        raise MissingInput(f"{method} needs the {what} of every client, and {client!r} has none.")
    return value
