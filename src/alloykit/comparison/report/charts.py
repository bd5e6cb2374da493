"""The report's small charts: reliability diagrams, and what lies between two members."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Transform, blended_transform_factory

from alloykit.comparison.report import wording
from alloykit.comparison.report.data import Barrier
from alloykit.comparison.report.ranges import Domain
from alloykit.comparison.report.svg import CARD, SERIES, SOFT, Canvas, drawing, shortened


def reliability(bins: Sequence[tuple[float, float, int]], *, name: str, title: str) -> str:
    """A reliability diagram: accuracy against confidence, the dots as large as the bins, as SVG.

    Args:
        bins: (mean confidence, accuracy, examples) of each bin; empty bins are left out.
        name: Prefix of the ids in the drawing; unique within the page.
        title: Whose diagram it is, for the text alternative.
    """
    full = [(confidence, right, count) for confidence, right, count in bins if count]
    total = sum(count for *_, count in full)
    with drawing():
        canvas = Canvas(name, 340, 300)
        axes = canvas.axes(left=54, right=24, top=10, bottom=44)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        axes.vlines(
            [c for c, *_ in full],
            [c for c, *_ in full],
            [a for _, a, _ in full],
            color=SERIES[1],
            linewidth=1.6,
            alpha=0.7,
        )
        axes.plot([c for c, *_ in full], [a for _, a, _ in full], color=SERIES[0], linewidth=1.6)
        for confidence, right, count in full:
            text = f"said {confidence:.0%}, was right {right:.0%}: {count:,} examples"
            axes.plot(
                [confidence],
                [right],
                "o",
                ms=4.5 + 11 * math.sqrt(count / total),
                mfc=SERIES[0],
                mec=CARD,
                mew=1,
                clip_on=False,
                gid=canvas.hover(text),
                zorder=4,
            )
        _unit_axes(canvas, axes, "confidence", "accuracy")
        said = "; ".join(f"{c:.0%} said, {a:.0%} right" for c, a, _ in full)
        return canvas.svg(f"Reliability of {title}: {said}.")


def _unit_axes(canvas: Canvas, axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    percent = [f"{share}{wording.SPACE}%" for share in (0, 50, 100)]
    axes.set_xticks([0, 0.5, 1], percent)
    # The two zeros would meet at the corner: one is enough.
    axes.set_yticks([0, 0.5, 1], ["", *percent[1:]])
    axes.set_xlabel(canvas.write(horizontal), labelpad=5)
    axes.set_ylabel(canvas.write(vertical), labelpad=2)


def barrier_domain(barriers: Sequence[Barrier]) -> Domain:
    """Ends of the loss axis that all panels share, so that heights can be compared."""
    values = [
        value
        for barrier in barriers
        for curve in (barrier.losses, barrier.losses_reestimated or ())
        for value in curve
        if math.isfinite(value)
    ]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return min(0.0, low) if low < 0.5 * high else low - 0.1 * (high - low), high


def error_top(barriers: Sequence[Barrier]) -> float:
    """Upper end of the axis of wrong predictions that all panels share; its lower end is 0."""
    values = [error for barrier in barriers for error in barrier.errors or ()]
    return max((value for value in values if math.isfinite(value)), default=0.0) or 0.01


def barrier_curve(
    barrier: Barrier, domain: Domain, *, name: str, errors_to: float | None = None
) -> str:
    """Loss and wrong predictions between two members, each against the straight line, as SVG.

    Args:
        barrier: What was measured.
        domain: Ends of the loss axis.
        name: Prefix of the ids in the drawing; unique within the page.
        errors_to: Upper end of the axis of wrong predictions; as this barrier needs where None.
    """
    with drawing():
        if barrier.errors is None:
            canvas = Canvas(name, 340, 220)
            lowest = _losses(canvas, barrier, domain, bottom=26)
        else:
            canvas = Canvas(name, 340, 310)
            upper = _losses(canvas, barrier, domain, bottom=140)
            upper.tick_params(labelbottom=False)
            lowest = _errors(canvas, barrier, errors_to or error_top([barrier]), top=190)
        _name_the_ends(canvas, lowest, barrier)
        return canvas.svg(_barrier_alt(barrier))


def _losses(canvas: Canvas, barrier: Barrier, domain: Domain, *, bottom: float) -> Axes:
    low, high = domain
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes = canvas.axes(left=54, right=10, top=10, bottom=bottom)
    score = partial(wording.score, metric="loss")
    _curve(canvas, axes, barrier.alphas, barrier.losses, _AVERAGED, score)
    if barrier.losses_reestimated is not None:
        _curve(canvas, axes, barrier.alphas, barrier.losses_reestimated, _REESTIMATED, score)
    _straight(axes, barrier.losses)
    axes.set(xlim=(-0.02, 1.02), ylim=(low if low == 0 else low - pad, high + pad))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _level_lines(canvas, axes, "loss")
    return axes


def _errors(canvas: Canvas, barrier: Barrier, highest: float, *, top: float) -> Axes:
    assert barrier.errors is not None
    axes = canvas.axes(left=54, right=10, top=top, bottom=26)
    score = partial(wording.score, metric="accuracy")
    _curve(canvas, axes, barrier.alphas, barrier.errors, _WRONG, score)
    _straight(axes, barrier.errors)
    axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.12 * highest))
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.3g}{wording.SPACE}%")
    )
    _level_lines(canvas, axes, "wrong")
    return axes


def _straight(axes: Axes, values: Sequence[float]) -> None:
    axes.plot([0, 1], [values[0], values[-1]], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))


def _level_lines(canvas: Canvas, axes: Axes, vertical: str) -> None:
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylabel(canvas.write(vertical))
    # Tick labels differ in width: without a fixed place the names of both axes would not align.
    axes.yaxis.set_label_coords(15 / canvas.width, 0.5, transform=_across(canvas, axes))


def _across(canvas: Canvas, axes: Axes) -> Transform:
    """Fractions of the drawing horizontally, of the axes vertically."""
    return blended_transform_factory(canvas.figure.transFigure, axes.transAxes)


def _name_the_ends(canvas: Canvas, axes: Axes, barrier: Barrier) -> None:
    labels = {
        0: canvas.write(shortened(barrier.first, 14)),
        1: canvas.write(shortened(barrier.second, 14)),
    }
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "halfway")))
    axes.xaxis.get_major_ticks()[0].label1.set_horizontalalignment("left")
    axes.xaxis.get_major_ticks()[-1].label1.set_horizontalalignment("right")


@dataclass(frozen=True)
class _Style:
    """How a curve looks and what it is called under the pointer."""

    what: str
    colour: str
    mark: str
    dash: str
    width: float = 1.8


_AVERAGED = _Style("loss as averaged", SERIES[1], "o", "-")
_REESTIMATED = _Style("loss with BatchNorm re-estimated", SERIES[0], "s", "--")
_WRONG = _Style("wrong predictions", SERIES[3], "D", "-", width=1.3)


def _curve(
    canvas: Canvas,
    axes: Axes,
    alphas: Sequence[float],
    values: Sequence[float],
    style: _Style,
    score: Callable[[float], str],
) -> None:
    axes.plot(alphas, values, style.dash, color=style.colour, linewidth=style.width, zorder=3)
    for alpha, value in zip(alphas, values, strict=True):
        if math.isfinite(value):
            axes.plot(
                [alpha],
                [value],
                style.mark,
                ms=5 if style.mark != "D" else 4,
                mfc=style.colour,
                mec=CARD,
                mew=0.8,
                zorder=4,
                clip_on=False,
                gid=canvas.hover(f"alpha {alpha:g}, {style.what}: {score(value)}"),
            )


def _barrier_alt(barrier: Barrier) -> str:
    def peak(losses: Sequence[float]) -> str:
        finite = [loss for loss in losses if math.isfinite(loss)]
        return wording.score(max(finite), "loss") if finite else "not finite"

    text = (
        f"Loss between {barrier.first} ({wording.score(barrier.losses[0], 'loss')}) and "
        f"{barrier.second} ({wording.score(barrier.losses[-1], 'loss')}); "
        f"highest as averaged: {peak(barrier.losses)}"
    )
    if barrier.losses_reestimated is not None:
        text += f"; with BatchNorm re-estimated: {peak(barrier.losses_reestimated)}"
    return f"{text}.{_errors_alt(barrier)}"


def _errors_alt(barrier: Barrier) -> str:
    finite = [error for error in barrier.errors or () if math.isfinite(error)]
    if not barrier.errors or not finite:
        return ""
    first, last, most = (
        wording.score(error, "accuracy")
        for error in (barrier.errors[0], barrier.errors[-1], max(finite))
    )
    return f" Wrong predictions: {first} and {last} at the ends, at most {most}."
