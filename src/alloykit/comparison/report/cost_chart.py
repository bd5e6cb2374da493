"""The main metric against cost: every candidate a point, the worthwhile ones joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from alloykit.comparison.report import wording
from alloykit.comparison.report.placing import GAP, Box, place_labels
from alloykit.comparison.report.ranges import Domain, outside
from alloykit.comparison.report.svg import CARD, INK, SERIES, SOFT, Canvas, drawing, shortened

# Colour and shape say the same, for those who do not tell the colours apart and for print.
FAMILY_STYLE = {
    "member": (SOFT, "o"),
    "predictions": (SERIES[0], "s"),
    "weights": (SERIES[1], "^"),
    "soup": (SERIES[2], "D"),
    "fusion": (SERIES[3], "P"),
    "student": (SERIES[4], "v"),
    "federated": (SERIES[6], "p"),
    "retrained": (SERIES[5], "X"),
}
LABEL_SIZE = 12.0
RING_GAP = 14.0
LOG_FROM = 8.0
"""Costs that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """One candidate among the others.

    Attributes:
        name: Its name.
        family: Decides colour and shape.
        cost: What it takes for one prediction; positive.
        score: Its value of the main metric.
        importance: Of its name: 2 must be shown, 1 before the others, 0 where there is room.
        ring: Whether it is the recommended one.
    """

    name: str
    family: str
    cost: float
    score: float
    importance: int = 0
    ring: bool = False


@dataclass(frozen=True)
class CostAxis:
    """What the horizontal axis measures, and how it is written: "4 ms", "4 passes"."""

    label: str
    timed: bool

    def text(self, value: float, *, short: bool = False) -> str:
        """A cost in its unit; ``short`` for the marks of an axis."""
        if self.timed:
            return wording.duration(value, short=short)
        return f"{value:g}" if short else f"{value:g} pass{'es' if value != 1 else ''}"


@dataclass(frozen=True)
class ScoreAxis:
    """The main metric: its direction, its part of the axis, how it is written."""

    metric: str
    higher_is_better: bool
    domain: Domain
    examples: int
    reference: float | None = None

    def text(self, value: float) -> str:
        """A score as it is written elsewhere in the report."""
        return wording.score(value, self.metric, self.examples)


def pareto(points: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """The points that no other beats on both score and cost, cheapest first.

    Example:
        >>> a, b, c = Point("a", "", 1, 0.8), Point("b", "", 4, 0.9), Point("c", "", 5, 0.85)
        >>> [p.name for p in pareto([a, b, c], higher_is_better=True)]
        ['a', 'b']
    """
    sign = -1.0 if higher_is_better else 1.0
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, sign * p.score, p.name)):
        if not front or sign * point.score < sign * front[-1].score:
            front.append(point)
    return front


def scatter(
    points: Sequence[Point],
    costs: CostAxis,
    scores: ScoreAxis,
    *,
    name: str,
    width: int,
    height: int,
) -> str:
    """Score against cost with the Pareto front, as SVG; points off the axis become arrows.

    Args:
        points: The candidates.
        costs: The horizontal axis.
        scores: The vertical axis.
        name: Prefix of the ids in the drawing; unique within the page.
        width: Pixels.
        height: Pixels.
    """
    with drawing():
        canvas = Canvas(name, width, height)
        axes = canvas.axes(left=56, right=14, top=34, bottom=48)
        _cost_axis(canvas, axes, points, costs)
        _score_axis(canvas, axes, scores)
        front = pareto(points, higher_is_better=scores.higher_is_better)
        _front(axes, front, scores)
        for point in points:
            _mark(canvas, axes, point, costs, scores)
        _names(canvas, axes, points, front, scores, longest=18 + width // 60)
        return canvas.svg(_scatter_alt(points, front, costs, scores))


def _cost_axis(canvas: Canvas, axes: Axes, points: Sequence[Point], costs: CostAxis) -> None:
    low, high = min(p.cost for p in points), max(p.cost for p in points)
    if high > LOG_FROM * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.set_xlim(low / 1.35, high * 1.35)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not costs.timed))
        axes.set_xlim(0, high * 1.18)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: costs.text(value, short=True) if value else "0")
    )
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel(canvas.write(f"{costs.label} →  (left is cheaper)"), labelpad=9)


def _score_axis(canvas: Canvas, axes: Axes, scores: ScoreAxis) -> None:
    low, high = scores.domain
    pad = 0.04 * (high - low)
    ends = (low - pad, high + pad)
    # Up is better, whatever the metric's direction.
    axes.set_ylim(ends if scores.higher_is_better else ends[::-1])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scores.text(value)))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    axes.annotate(
        canvas.write(f"↑ {wording.label(scores.metric)} on test  (up is better)"),
        (0, 1),
        xycoords="axes fraction",
        xytext=(-50, 14),
        textcoords="offset points",
        color=SOFT,
        fontsize=11.5,
    )
    if scores.reference is None:
        return
    axes.axhline(scores.reference, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
    text = canvas.write("best single member")
    place = axes.get_yaxis_transform()
    axes.annotate(
        text,
        (1, scores.reference),
        xycoords=place,
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        color=SOFT,
        fontsize=11,
    )


def _front(axes: Axes, front: Sequence[Point], scores: ScoreAxis) -> None:
    xs = [p.cost for p in front] + [axes.get_xlim()[1]]
    ys = [_shown(p, scores) for p in front]
    axes.step(xs, [*ys, ys[-1]], where="post", color=SERIES[3], linewidth=1.6, alpha=0.75, zorder=2)


def _mark(canvas: Canvas, axes: Axes, point: Point, costs: CostAxis, scores: ScoreAxis) -> None:
    colour, marker = FAMILY_STYLE.get(point.family, (SOFT, "o"))
    side = outside(point.score, scores.domain) * (1 if scores.higher_is_better else -1)
    y = _shown(point, scores)
    if point.ring:
        axes.plot(
            [point.cost], [y], "o", ms=18, mfc="none", mec=INK, mew=1.4, zorder=3, clip_on=False
        )
    axes.plot(
        [point.cost],
        [y],
        {1: "^", -1: "v"}.get(side, marker),
        ms=8 if marker != "D" else 7,
        mfc=CARD if side else colour,
        mec=colour if side else CARD,
        mew=1.2,
        zorder=4,
        clip_on=False,
        gid=canvas.hover(f"{point.name}: {scores.text(point.score)}, {costs.text(point.cost)}"),
    )


def _shown(point: Point, scores: ScoreAxis) -> float:
    return min(max(point.score, scores.domain[0]), scores.domain[1])


def _names(
    canvas: Canvas,
    axes: Axes,
    points: Sequence[Point],
    front: Sequence[Point],
    scores: ScoreAxis,
    longest: int,
) -> None:
    spots = [axes.transData.transform((p.cost, _shown(p, scores))) for p in points]
    texts = [_label(point, scores, longest) for point in points]
    area = axes.get_window_extent()
    bounds = (area.x0, area.y0, area.x1 + 8, area.y1 + 6)
    places = place_labels(
        [(float(x), float(y)) for x, y in spots],
        [0.54 * LABEL_SIZE * len(text) for text in texts],
        [p.importance for p in points],
        bounds,
        LABEL_SIZE * 1.25,
        gaps=[RING_GAP if p.ring else GAP for p in points],
        obstacles=_lines(axes, front, scores),
    )
    for point, text, place in zip(points, texts, places, strict=True):
        if place is not None:
            axes.annotate(
                canvas.write(text),
                (point.cost, _shown(point, scores)),
                xytext=(place.dx, place.dy),
                textcoords="offset points",
                ha=place.side,
                va="center_baseline",
                fontsize=LABEL_SIZE,
                annotation_clip=False,
                color=INK if point.importance else SOFT,
                fontweight="bold" if point.ring else "normal",
            )


def _lines(axes: Axes, front: Sequence[Point], scores: ScoreAxis) -> list[Box]:
    """Boxes around the front, the reference line and its words, in pixels."""
    area = axes.get_window_extent()
    spots = [axes.transData.transform((p.cost, _shown(p, scores))) for p in front]
    ends = [*(float(x) for x, _ in spots[1:]), area.x1]
    boxes = [(x, y - 2, end, y + 2) for (x, y), end in zip(spots, ends, strict=True)]
    boxes += [
        (float(x) - 2, float(before), float(x) + 2, float(y))
        for (_, before), (x, y) in pairwise(spots)
    ]
    if scores.reference is not None:
        _, y = axes.transData.transform((front[0].cost, scores.reference))
        boxes += [(area.x0, y - 2, area.x1, y + 2), (area.x1 - 120, y, area.x1, y + 16)]
    return [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]


def _label(point: Point, scores: ScoreAxis, longest: int) -> str:
    text = shortened(point.name, longest)
    return f"{text} ({scores.text(point.score)})" if outside(point.score, scores.domain) else text


def _scatter_alt(
    points: Sequence[Point], front: Sequence[Point], costs: CostAxis, scores: ScoreAxis
) -> str:
    best = "; ".join(f"{p.name} {scores.text(p.score)} at {costs.text(p.cost)}" for p in front)
    return (
        f"{wording.label(scores.metric)} against {costs.label} of {len(points)} candidates. "
        f"Not beaten on both, cheapest first: {best}."
    )
