"""How a trained candidate learned: loss, and validation where it was measured, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alloykit.comparison.report import wording
from alloykit.comparison.report.svg import CARD, INK, SERIES, Canvas, drawing

MANY = 40
"""Above this many epochs the dots are small."""


def learning_curve(history: Mapping[str, Any], *, name: str, title: str) -> str:
    """The training loss of every epoch, and below it the validation score, as SVG.

    Args:
        history: What ``training.history.History.to_json`` gives.
        name: Prefix of the ids in the drawing; unique within the page.
        title: Whose curve it is, for the text alternative.
    """
    epochs = history["epochs"]
    numbers = [epoch["number"] for epoch in epochs]
    losses = [_number(epoch["loss"]) for epoch in epochs]
    scores = [_number(epoch["validation"]) for epoch in epochs]
    metric = history.get("metric") or "loss"
    judged = any(math.isfinite(score) for score in scores)
    with drawing():
        canvas = Canvas(name, 340, 300 if judged else 200)
        upper = canvas.axes(left=54, right=12, top=10, bottom=146 if judged else 40)
        _line(canvas, upper, numbers, losses, SERIES[1], "loss", "training loss")
        lowest = upper
        if judged:
            upper.tick_params(labelbottom=False)
            lowest = canvas.axes(left=54, right=12, top=170, bottom=40)
            label = wording.label(metric)
            _line(canvas, lowest, numbers, scores, SERIES[0], metric, f"validation {label}")
            _mark_kept(lowest, history.get("best", 0), numbers, scores)
        lowest.set_xlabel(canvas.write("epoch"), labelpad=4)
        return canvas.svg(_alt(title, losses, scores, metric))


def _line(
    canvas: Canvas,
    axes: Axes,
    numbers: Sequence[int],
    values: Sequence[float],
    colour: str,
    metric: str,
    what: str,
) -> None:
    axes.plot(numbers, values, color=colour, linewidth=1.8)
    size = 4 if len(numbers) <= MANY else 2
    for number, value in zip(numbers, values, strict=True):
        if math.isfinite(value):
            text = f"epoch {number}, {what}: {wording.score(value, metric)}"
            axes.plot(
                [number], [value], "o", ms=size, mfc=colour, mec=CARD, mew=0.6, clip_on=False,
                gid=canvas.hover(text), zorder=4,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(canvas.write(what), labelpad=3)


def _mark_kept(axes: Axes, best: int, numbers: Sequence[int], scores: Sequence[float]) -> None:
    """A ring around the epoch whose weights were kept."""
    if best in numbers and math.isfinite(scores[numbers.index(best)]):
        value = scores[numbers.index(best)]
        axes.plot([best], [value], "o", ms=10, mfc="none", mec=INK, mew=1.2, clip_on=False)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _alt(title: str, losses: Sequence[float], scores: Sequence[float], metric: str) -> str:
    text = f"Training of {title}: {len(losses)} epochs"
    if losses:
        first, last = (wording.score(value, "loss") for value in (losses[0], losses[-1]))
        text += f", loss from {first} to {last}"
    finite = [score for score in scores if math.isfinite(score)]
    if finite:
        text += f", validation {wording.label(metric)} {wording.score(finite[-1], metric)} at last"
    return f"{text}."
