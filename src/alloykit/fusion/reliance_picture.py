"""The picture of a reliance: a heat map of members and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from alloykit.errors import MissingInput
from alloykit.fusion.reliance import Reliance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 60
"""Classes in one picture; of more, those where most is at stake."""

NAMED = {
    "log_loss": "rise of the log loss (nats) without the member",
    "accuracy": "loss of accuracy without the member",
    "squared_error": "rise of the squared error without the member",
    "attention": "mean attention",
}


def picture(
    found: Reliance, path: str | Path, *, what: Literal["loss", "attention"] = "loss"
) -> Path:
    """Draw which member is believed for which class: a heat map of classes and members.

    Args:
        found: What to draw.
        path: A file ending in .png, .svg or .pdf; an existing one is replaced.
        what: "loss", what the head would lose without the member, or "attention".

    Raises:
        MissingInput: The head has no attention.
    """
    from matplotlib.figure import Figure

    table = found.loss if what == "loss" else found.class_attention
    if table is None:
        raise MissingInput("There is no attention per class to draw: use what='loss'.")
    target = Path(path).expanduser()
    classes, values = _drawn(found.classes, torch.tensor(table).T)
    longest = max(len(name) for name in found.members)
    width, height = 2.4 + 0.08 * longest + 0.5 * min(len(classes), 30), 1.7 + 0.5 * len(values)
    figure = Figure(figsize=(width, height), layout="constrained")
    title = NAMED["attention" if what == "attention" else found.measure]
    if len(classes) < len(found.classes):
        title += f", {len(classes)} of {len(found.classes)} classes"
    axes = figure.add_subplot()
    _draw(axes, found.members, classes, values, title)
    axes.set_xlabel("output" if found.measure == "squared_error" else "class")
    figure.savefig(target, dpi=160)
    return target


def _drawn(classes: Sequence[str], values: Tensor) -> tuple[list[str], Tensor]:
    """The classes for one picture, in their order, with their columns."""
    largest = values.abs().nan_to_num(-1.0).max(0).values
    kept = largest.argsort(descending=True, stable=True)[:MOST_DRAWN].sort().values
    return [classes[place] for place in kept.tolist()], values[:, kept]


def _draw(
    axes: Axes, members: Sequence[str], classes: Sequence[str], table: Tensor, title: str
) -> None:
    known = table[torch.isfinite(table)]
    widest = float(known.abs().max()) if known.numel() else 1.0
    signed = bool(known.numel()) and float(known.min()) < -0.05 * widest
    low, colours = (-widest, "PuOr") if signed else (0.0, "Purples")
    image = axes.imshow(
        table.numpy(), cmap=colours, vmin=low, vmax=widest or 1.0, aspect="auto", origin="upper"
    )
    crowded = len(classes) > 30 or max(map(len, classes)) > 5
    axes.set_yticks(range(len(members)), members)
    axes.set_xticks(range(len(classes)), classes, rotation=90 if crowded else 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # White lines between the cells.
    axes.set_xticks([place - 0.5 for place in range(1, len(classes))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(members))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(title[0].upper() + title[1:], fontsize=10, loc="left")
    if len(classes) <= 26:
        _write_numbers(axes, table, widest)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.outline.set_visible(False)


def _write_numbers(axes: Axes, table: Tensor, widest: float) -> None:
    digits = 2 if widest < 10 else 1
    for member, row in enumerate(table.tolist()):
        for place, value in enumerate(row):
            dark = abs(value) > 0.6 * widest
            text = "–" if value != value else f"{value:.{digits}f}".replace("-0.00", "0.00")
            axes.text(
                place,
                member,
                text.replace("-", "−"),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#222222",
            )
