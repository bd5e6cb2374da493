"""The picture of federations: their validation score against rounds, and against megabytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alloykit.errors import MissingInput
from alloykit.federation.round_history import FederationHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#5e3c99", "#e66101", "#1b7837", "#2166ac", "#b2182b", "#8c6d31", "#35978f", "#c51b7d")
MEGABYTE = 1e6


def picture(
    histories: FederationHistory | Mapping[str, FederationHistory],
    path: str | Path,
    *,
    lines: Mapping[str, float] | None = None,
    title: str = "",
    split: str = "validation",
) -> Path:
    """Draw how good the server's model is after so many rounds, and after so many megabytes.

    Args:
        histories: One federation, or several by name; all with the same metric.
        path: A file ending in .png, .svg or .pdf; an existing one is replaced.
        lines: Scores to compare with, by name, drawn across: training on the union, an ensemble.
        title: Above the left panel; by default the metric.
        split: What the scores are of.

    Raises:
        MissingInput: No round has a score.
    """
    from matplotlib.figure import Figure

    single = isinstance(histories, FederationHistory)
    named = {"": histories} if isinstance(histories, FederationHistory) else dict(histories)
    drawn = {name: points for name, each in named.items() if (points := _scored(each))[0]}
    if not drawn:
        raise MissingInput("There is nothing to draw: no round was scored. Give validation data.")
    target = Path(path).expanduser()
    figure = Figure(figsize=(9.0, 3.6 if single else 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (name, (numbers, moved, scores)) in enumerate(drawn.items()):
        colour = COLOURS[place % len(COLOURS)]
        style = "-" if place < len(COLOURS) else "--"
        for axes, across in ((left, numbers), (right, moved)):
            axes.plot(across, scores, style, color=colour, linewidth=1.6, label=name)
            if len(scores) <= 40:
                axes.plot(across, scores, "o", color=colour, markersize=2.8)
    metric = named[next(iter(drawn))].metric.replace("_", " ")
    _finish(left, "round", lines or {})
    _finish(right, "megabytes moved, both ways", lines or {})
    left.set_ylabel(f"{split} {metric}")
    left.set_title(title or f"{metric[:1].upper()}{metric[1:]} after each round", **HEADLINE)
    right.set_title("The same, by what it cost to send", **HEADLINE)
    left.xaxis.get_major_locator().set_params(integer=True)
    if not single:
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(target, dpi=160)
    return target


HEADLINE = {"fontsize": 10, "loc": "left"}


def _scored(history: FederationHistory) -> tuple[list[int], list[float], list[float]]:
    """Numbers of the rounds that have a finite score, megabytes so far, and the scores."""
    found = [
        (each.number, moved / MEGABYTE, each.score)
        for each, moved in zip(history.rounds, history.moved, strict=True)
        if each.score is not None and abs(each.score) < float("inf")
    ]
    return [each[0] for each in found], [each[1] for each in found], [each[2] for each in found]


def _finish(axes: Axes, across: str, lines: Mapping[str, float]) -> None:
    for name, score in lines.items():
        axes.axhline(score, color="#777777", linewidth=0.9, linestyle=":")
        axes.annotate(
            name,
            (1.0, score),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#555555",
        )
    axes.set_xlabel(across)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(left=0)
