"""The report's small charts: reliability diagrams, and the loss between two members."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from alloykit.comparison import wording
from alloykit.comparison.ranges import Domain
from alloykit.comparison.report_data import Barrier
from alloykit.comparison.svg import CARD, SERIES, SOFT, Canvas, drawing, shortened


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


def barrier_curve(barrier: Barrier, domain: Domain, *, name: str) -> str:
    """The loss between two members, against the straight line between their losses, as SVG.

    Args:
        barrier: What was measured.
        domain: Ends of the loss axis.
        name: Prefix of the ids in the drawing; unique within the page.
    """
    low, high = domain
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    with drawing():
        canvas = Canvas(name, 340, 220)
        axes = canvas.axes(left=46, right=10, top=10, bottom=26)
        _curve(canvas, axes, barrier.alphas, barrier.losses, "as averaged", SERIES[1], "o-")
        if barrier.losses_reestimated is not None:
            _curve(
                canvas,
                axes,
                barrier.alphas,
                barrier.losses_reestimated,
                "BatchNorm re-estimated",
                SERIES[0],
                "s--",
            )
        ends = [barrier.losses[0], barrier.losses[-1]]
        axes.plot([0, 1], ends, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        axes.set(xlim=(-0.02, 1.02), ylim=(low if low == 0 else low - pad, high + pad))
        axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        labels = {
            0: canvas.write(shortened(barrier.first, 16)),
            1: canvas.write(shortened(barrier.second, 16)),
        }
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "halfway")))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.get_major_ticks()[0].label1.set_horizontalalignment("left")
        axes.xaxis.get_major_ticks()[-1].label1.set_horizontalalignment("right")
        axes.set_ylabel(canvas.write("loss"), labelpad=3)
        return canvas.svg(_barrier_alt(barrier))


def _curve(
    canvas: Canvas,
    axes: Axes,
    alphas: Sequence[float],
    losses: Sequence[float],
    what: str,
    colour: str,
    style: str,
) -> None:
    axes.plot(alphas, losses, style[1:], color=colour, linewidth=1.8, zorder=3)
    for alpha, loss in zip(alphas, losses, strict=True):
        if math.isfinite(loss):
            gid = canvas.hover(f"alpha {alpha:g}, {what}: {wording.score(loss, 'loss')}")
            axes.plot(
                [alpha],
                [loss],
                style[0],
                ms=5,
                mfc=colour,
                mec=CARD,
                mew=0.8,
                zorder=4,
                clip_on=False,
                gid=gid,
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
    return f"{text}."
