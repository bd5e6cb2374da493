"""What norm clipping and differential privacy share: deltas that are cut to a length."""

from __future__ import annotations

from alloykit.federation.contract import Report
from alloykit.federation.limits import known


def kept_fraction(norm: float, clip_norm: float) -> float:
    """What a delta of that norm is multiplied with, so that it is no longer than the clip norm.

    Example:
        >>> kept_fraction(4.0, 1.0), kept_fraction(0.5, 1.0), kept_fraction(0.0, 1.0)
        (0.25, 1.0, 1.0)
    """
    # Also what keeps a delta of length zero, and an infinite clip norm, from 0/0 and inf/inf.
    return 1.0 if norm <= clip_norm else clip_norm / norm


def clipped(report: Report, clip_norm: float, method: str) -> float:
    """The same for a client's delta."""
    return kept_fraction(known(report.norm, "norm", report.client, method), clip_norm)
