"""Which updates count in a round: limits on what clients may send and claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnBad = Literal["leave_out", "error"]


@dataclass(frozen=True)
class Checks:
    """What is asked of updates before they count.

    Names, shapes, kinds of elements, NaN and infinities, and the numbers that clients claim are
    checked always. These are the limits.

    Args:
        on_bad: "leave_out" goes on without a bad update, and the round's record says why it does
            not count; "error" ends the round.
        min_clients: Quorum: fewer updates that count leave the server's model as it is, at least 1.
        max_examples: Largest number of examples that a client may claim; None for no limit.
        examples_ratio: The same as a multiple of the median of all claims; None for no limit. The
            default 1000 only stops absurd claims.
        max_norm: Longest delta (2-norm over all averaged tensors); None for no limit.
        norm_ratio: The same as a multiple of the median of all deltas; None for no limit. The
            default 100 only stops absurd ones; robust aggregators stop the others.
        dtypes: "exact" asks for the server's dtypes, "kind" takes floats of any precision.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
    """

    on_bad: OnBad = "leave_out"
    min_clients: int = 1
    max_examples: float | None = None
    examples_ratio: float | None = 1000.0
    max_norm: float | None = None
    norm_ratio: float | None = 100.0
    dtypes: Literal["exact", "kind"] = "exact"
