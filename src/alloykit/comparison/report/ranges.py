"""Intervals drawn as a line with a dot, all on one axis, small enough for a table cell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from alloykit.types import Interval

WIDTH, HEIGHT, MARGIN = 170, 20, 7
CAP = 4
"""Half the height of the strokes that close an interval."""

FENCE = 1.5
"""Tukey's: values further from the quartiles than so many times their distance are outliers."""

Domain = tuple[float, float]


def focus(intervals: Sequence[Interval], always: Sequence[Interval] = ()) -> Domain:
    """The part of the axis where the interesting rows are.

    One merge that fell apart (10 % where the others have 90 %) would press all others into a dot:
    values further from the quartiles than 1.5 times their distance are left to the edge.

    Args:
        intervals: All rows' intervals.
        always: Those that must be visible whatever their value.

    Example:
        >>> every = [Interval(v, v - 0.01, v + 0.01) for v in (0.1, 0.9, 0.91, 0.92, 0.93)]
        >>> low, high = focus(every)
        >>> low > 0.8, high < 1
        (True, True)

    References:
        Tukey, Exploratory Data Analysis, 1977, chapter 2 (the inner fence). The distance is never
        taken smaller than a typical interval, so that no row among equals counts as an outlier.
    """
    values = [interval.value for interval in intervals]
    first, _, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    reach = FENCE * max(third - first, median(i.high - i.low for i in intervals))
    near = [i for i in intervals if first - reach <= i.value <= third + reach]
    shown = [*near, *always]
    low, high = min(i.low for i in shown), max(i.high for i in shown)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def outside(value: float, domain: Domain) -> int:
    """-1 below the domain, 1 above it, 0 within."""
    return (value > domain[1]) - (value < domain[0])


def range_svg(interval: Interval, domain: Domain, reference: float | None, title: str) -> str:
    """The interval on the common axis; ``title`` is plain numbers and needs no escaping.

    Args:
        interval: What to draw.
        domain: Ends of the axis; a value beyond them becomes an arrow at the edge.
        reference: Where the line of the best single member stands, or None.
        title: Shown under the pointer.
    """
    y = HEIGHT / 2
    parts = []
    if reference is not None:
        x = _at(reference, domain)
        parts.append(f'<line class="ref" x1="{x}" x2="{x}" y1="-80" y2="{HEIGHT + 80}"/>')
    side = outside(interval.value, domain)
    if side:
        tip = 1 if side < 0 else WIDTH - 1
        parts.append(f'<path class="off" d="M{tip} {y}l{-7 * side} -4.5v9z"/>')
    else:
        low, high = _at(interval.low, domain), _at(interval.high, domain)
        parts.append(f'<line class="bar" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
        # Without the caps a dot would hide an interval that is not much longer than itself.
        caps = "".join(f"M{x} {y - CAP}v{2 * CAP}" for x in (low, high) if low < high)
        parts.append(f'<path class="cap" d="{caps}"/>' if caps else "")
        parts.append(f'<circle class="dot" cx="{_at(interval.value, domain)}" cy="{y}" r="3.5"/>')
    return (
        f'<svg class="range" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'aria-hidden="true"><title>{title}</title>{"".join(parts)}</svg>'
    )


def _at(value: float, domain: Domain) -> float:
    share = (min(max(value, domain[0]), domain[1]) - domain[0]) / (domain[1] - domain[0])
    return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)
