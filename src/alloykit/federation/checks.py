"""Which updates count in a round: limits on what clients may send and claim."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alloykit.errors import InvalidParameter, did_you_mean, listing
from alloykit.federation.contract import Aggregator
from alloykit.federation.update import Update
from alloykit.numerics import is_number, is_whole

OnBad = Literal["leave_out", "error"]

ASKED = {"steps": "number of local steps", "loss": "loss of the server's model on its data"}
"""Numbers that some aggregators ask of every client."""

LEAST, MOST = 1e-100, 1e100
"""Between these are the numbers that clients may claim: sums and products of others leave the range
of floats."""


@dataclass(frozen=True)
class Checks:
    """What is asked of updates before they count.

    Names, shapes, kinds of elements and the numbers that clients claim are checked always. These
    are the limits.

    Args:
        on_bad: "leave_out" goes on without a bad update, and the round's record says why it does
            not count; "error" ends the round.
        min_clients: Quorum: fewer updates that count leave the server's model as it is, at least 1.
        values: Whether NaN and infinities are looked for, and absurd norms. Without it and
            without ``max_norm`` an aggregation that is a sum takes about a third less time, and
            one client can spoil the model.
        max_examples: Largest number of examples that a client may claim; None for no limit.
        examples_ratio: The same as a multiple of the median of all claims; None for no limit. The
            default 1000 only stops absurd claims.
        max_norm: Longest delta (2-norm over all averaged tensors); None for no limit.
        norm_ratio: The same as a multiple of the median of all deltas, where norms are measured;
            None for no limit. The default 100 only stops absurd ones; robust aggregators stop the
            others.
        dtypes: "exact" asks for the server's dtypes, "kind" takes floats of any precision.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> Checks(max_norm=10.0).to_json()["max_norm"]
        10.0
    """

    on_bad: OnBad = "leave_out"
    min_clients: int = 1
    values: bool = True
    max_examples: float | None = None
    examples_ratio: float | None = 1000.0
    max_norm: float | None = None
    norm_ratio: float | None = 100.0
    dtypes: Literal["exact", "kind"] = "exact"

    def __post_init__(self) -> None:
        wrong = [
            _choice("on_bad", self.on_bad, ("leave_out", "error")),
            _choice("dtypes", self.dtypes, ("exact", "kind")),
            *(_limit(name, getattr(self, name)) for name in LIMITS),
        ]
        if not is_whole(self.min_clients) or self.min_clients < 1:
            wrong.append(
                f"'min_clients' must be a whole number of at least 1. Got {self.min_clients!r}."
            )
        if not isinstance(self.values, bool):
            wrong.append(f"'values' must be True or False. Got {self.values!r}.")
        if lines := [line for line in wrong if line]:
            raise InvalidParameter(f"Updates cannot be checked by these limits:\n{listing(lines)}")

    def measures(self, aggregator: Aggregator) -> bool:
        """Whether lengths of deltas are measured, and values looked at with them."""
        return self.values or self.max_norm is not None or "norm" in aggregator.asks

    def compares(self, aggregator: Aggregator) -> bool:
        """Whether an update's limits depend on the others."""
        of_examples = self.examples_ratio is not None and "num_examples" in aggregator.asks
        return of_examples or (self.norm_ratio is not None and self.measures(aggregator))

    def to_json(self) -> dict[str, Any]:
        """All limits as JSON values; ``Checks.of`` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, limits: Mapping[str, Any]) -> Checks:
        """The checks of a mapping; what it leaves out has its default.

        Raises:
            InvalidParameter: Names that are no limits, or numbers outside their ranges.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if odd := [name for name in limits if name not in known]:
            lines = [f"{name!r}.{did_you_mean(str(name), known)}" for name in odd]
            raise InvalidParameter(
                f"Checks has no such limits:\n{listing(lines)}\nIt has: {', '.join(known)}."
            )
        return cls(**limits)


LONGEST = 40
"""Characters of what a client says that its reason repeats."""

LIMITS = ("max_examples", "examples_ratio", "max_norm", "norm_ratio")


def claims(update: Update, aggregator: Aggregator, checks: Checks, current: int) -> str:
    """Why the numbers that come with an update cannot be used; "" where they can.

    Args:
        update: What came.
        aggregator: What asks for numbers.
        checks: The limits.
        current: Number of the round, from 1.
    """
    count = update.num_examples
    if count is not None:
        if not _believable(count):
            return f"it says that it has {_said(count)} examples"
        if checks.max_examples is not None and float(count) > checks.max_examples:
            return f"it says that it has {count:g} examples, over the limit {checks.max_examples:g}"
    for name, what in ASKED.items():
        value = getattr(update, name)
        if name in aggregator.asks and value is None:
            return f"{aggregator.name} asks for its {what}, and it gives none"
        if name in aggregator.asks and name == "steps" and value == 0:
            return "it took no local step"
        if value is not None and value != 0 and not _believable(value):
            return f"its {what} is {_said(value)}"
    if "control" in aggregator.asks and update.control is None:
        return f"{aggregator.name} asks for the change of its control variate, and it gives none"
    return _age(update, aggregator, current)


def exceeds(values: Sequence[float | None], ratio: float | None) -> list[bool]:
    """Which values are over that multiple of the median of all; none where there is no ratio.

    Example:
        >>> exceeds([1.0, 2.0, 3.0, 5000.0], 1000)
        [False, False, False, True]
    """
    known = [value for value in values if value is not None]
    limit = math.inf if ratio is None or not known else ratio * float(np.median(known))
    # Where most did not move there is nothing to compare with.
    return [value is not None and value > limit > 0 for value in values]


def _believable(value: object) -> bool:
    try:
        return is_number(value) and LEAST <= float(value) <= MOST
    except OverflowError:
        return False


def _said(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python does not write out whole numbers of thousands of digits.
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _age(update: Update, aggregator: Aggregator, current: int) -> str:
    if update.round is None:
        return ""
    if not is_whole(update.round) or update.round > current or update.round < 1:
        return f"it is of round {_said(update.round)}, and this is round {current}"
    if update.round == current:
        return ""
    if "staleness" not in aggregator.asks:
        return f"it is of the old round {update.round}; this is round {current}"
    if not update.delta:
        return (
            f"it is of the old round {update.round} and holds a whole model: of older rounds only "
            "changes can be used (delta=True)"
        )
    return ""


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return ""
    return f"{name!r} must be one of {', '.join(choices)}. Got {value!r}."


def _limit(name: str, value: Any) -> str:
    if value is None or (is_number(value) and math.isfinite(value) and value > 0):
        return ""
    return f"{name!r} must be a number above 0, or None for no limit. Got {value!r}."
