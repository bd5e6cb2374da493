"""Which member a trained head believes, and for which class: numbers, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.types import HeadData, HeadShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measure = Literal["log_loss", "accuracy", "squared_error"]
Table = tuple[tuple[float, ...], ...]

NAMED = {
    "log_loss": "rise of the log loss (nats) without the member",
    "accuracy": "loss of accuracy without the member",
    "squared_error": "rise of the squared error without the member",
    "attention": "mean attention",
}


@dataclass(frozen=True)
class Reliance:
    """What a head would lose without each member, and how much it attends to it.

    Attributes:
        members: Names.
        classes: Names of the classes, or of the outputs for regression.
        counts: Rows of each class.
        measure: What ``loss`` is: "log_loss", "accuracy" or "squared_error".
        loss: Per class and member: how much worse the head gets on rows of that class when the
            member's column is replaced by its mean over all rows. Near 0: it is not needed.
            Below 0: the head would do better without. NaN for classes without rows.
        overall: The same over all rows, per member.
        attention: Mean attention per member; None for heads without.
        class_attention: Mean attention per class and member; None for heads without.
    """

    members: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    measure: Measure
    loss: Table
    overall: tuple[float, ...]
    attention: tuple[float, ...] | None = None
    class_attention: Table | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, NaN as None."""
        return {
            "members": list(self.members),
            "classes": list(self.classes),
            "counts": list(self.counts),
            "measure": self.measure,
            "loss": _plain(self.loss),
            "overall": list(self.overall),
            "attention": None if self.attention is None else list(self.attention),
            "class_attention": None
            if self.class_attention is None
            else _plain(self.class_attention),
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Reliance:
        """The reliance that ``to_json`` told."""
        attention, by_class = told["attention"], told["class_attention"]
        return cls(
            members=tuple(told["members"]),
            classes=tuple(told["classes"]),
            counts=tuple(told["counts"]),
            measure=told["measure"],
            loss=_table(told["loss"]),
            overall=tuple(told["overall"]),
            attention=None if attention is None else tuple(attention),
            class_attention=None if by_class is None else _table(by_class),
        )


def reliance(
    head: nn.Module,
    data: HeadData,
    shape: HeadShape,
    names: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    measure: Measure | None = None,
) -> Reliance:
    """Measure how much a trained head relies on each member, for each class.

    loss[c, m] = mean over rows of class c of (ℓ(head without m) - ℓ(head)), where "without m" has
    m's column replaced by its mean over all rows: of the probabilities for outputs of classes, of
    the numbers themselves for values and features.

    The mean is what the head knows of a member that it cannot hear, so nothing is drawn at random
    and the numbers repeat. It differs from retraining without the member: of two members that say
    the same, a head may rely on either, and each can be missed a little. Measure it on rows that
    the head was not trained on; a context stays as it is.

    Args:
        head: ``FittedHead.module``.
        data: Rows and targets.
        shape: What the head was built for.
        names: Of the members.
        classes: Names of the classes; their numbers where not given.
        measure: "log_loss" (the default for classes), "accuracy", or "squared_error" (regression,
            per output).

    Raises:
        InvalidParameter: A measure that does not fit the task, or other numbers of names.

    Example:
        >>> class First(nn.Module):
        ...     def forward(self, members, context):
        ...         return members[0]
        >>> logs = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> data = HeadData((logs, logs), torch.tensor([0, 1]))
        >>> found = reliance(First(), data, HeadShape((2, 2), 2, "classification"), ["a", "b"])
        >>> [round(loss, 3) for loss in found.overall]
        [0.588, 0.0]

    References:
        Fisher, Rudin and Dominici, All models are wrong, but many are useful, 2019,
        arXiv:1801.01489, section 3, with the mean in the place of a permutation.
    """
    measure = measure or ("squared_error" if shape.task == "regression" else "log_loss")
    names, labels = tuple(names), _labels(shape, classes)
    _check(shape, names, labels, measure)
    with torch.no_grad():
        whole = _losses(head(data.members, data.context), data.targets, measure)
        rises = []
        for place in range(len(names)):
            deaf = _without(data.members, place, shape)
            rises.append(_losses(head(deaf, data.context), data.targets, measure) - whole)
        attention = getattr(head, "attention", None)
        listened = None if attention is None else attention(data.members, data.context).double()
    groups = None if shape.task == "regression" else data.targets
    rise = torch.stack(rises, dim=-1)
    return Reliance(
        members=names,
        classes=labels,
        counts=_counts(groups, len(labels), len(data.targets)),
        measure=measure,
        loss=_by_class(rise, groups, len(labels)),
        overall=tuple(rise.flatten(0, -2).mean(0).tolist()),
        attention=None if listened is None else tuple(listened.mean(0).tolist()),
        class_attention=None
        if listened is None or groups is None
        else _by_class(listened, groups, len(labels)),
    )


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
    members, classes = len(found.members), len(found.classes)
    longest = max(len(name) for name in found.members)
    figure = Figure(
        figsize=(2.4 + 0.08 * longest + min(0.62 * classes, 16), 1.7 + 0.5 * members),
        layout="constrained",
    )
    axes = figure.add_subplot()
    _draw(
        axes, found, torch.tensor(table).T, NAMED["attention" if what != "loss" else found.measure]
    )
    figure.savefig(target, dpi=160)
    return target


def _draw(axes: Axes, found: Reliance, table: Tensor, title: str) -> None:
    known = table[torch.isfinite(table)]
    widest = float(known.abs().max()) if known.numel() else 1.0
    signed = bool(known.numel()) and float(known.min()) < -0.05 * widest
    low = -widest if signed else 0.0
    colours = "PuOr_r" if signed else "Purples"
    image = axes.imshow(
        table.numpy(), cmap=colours, vmin=low, vmax=widest or 1.0, aspect="auto", origin="upper"
    )
    axes.set_yticks(range(len(found.members)), found.members)
    crowded = len(found.classes) > 12 or max(map(len, found.classes)) > 5
    axes.set_xticks(range(len(found.classes)), found.classes, rotation=90 if crowded else 0)
    axes.set_xlabel("class" if found.measure != "squared_error" else "output")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # White lines between the cells.
    axes.set_xticks([place - 0.5 for place in range(1, len(found.classes))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(found.members))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(title[0].upper() + title[1:], fontsize=10, loc="left")
    if len(found.classes) <= 26:
        _write_numbers(axes, table, low, widest)
    axes.figure.colorbar(image, ax=axes, pad=0.02)


def _write_numbers(axes: Axes, table: Tensor, low: float, widest: float) -> None:
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


def _without(members: Sequence[Tensor], place: int, shape: HeadShape) -> list[Tensor]:
    """The members' rows with one member's replaced by their mean."""
    column = members[place]
    if shape.source == "outputs" and shape.task != "regression":
        mean = column.double().logsumexp(0) - torch.tensor(len(column)).double().log()
    else:
        mean = column.double().mean(0)
    deaf = mean.to(column.dtype).expand_as(column)
    return [deaf if other == place else rows for other, rows in enumerate(members)]


def _losses(outputs: Tensor, targets: Tensor, measure: Measure) -> Tensor:
    """``[row]``, or ``[row, output]`` for squared errors, in float64."""
    if measure == "squared_error":
        return (outputs.double() - targets.double()).square()
    if measure == "accuracy":
        return (outputs.argmax(-1) != targets).double()
    return -outputs.double().gather(-1, targets[:, None])[:, 0]


def _by_class(values: Tensor, groups: Tensor | None, classes: int) -> Table:
    """Means over the rows of each class; over all rows, per output, where there are no groups."""
    if groups is None:
        return tuple(map(tuple, values.mean(0).tolist()))
    return tuple(tuple(values[groups == label].mean(0).tolist()) for label in range(classes))


def _counts(groups: Tensor | None, classes: int, rows: int) -> tuple[int, ...]:
    if groups is None:
        return (rows,) * classes
    return tuple(torch.bincount(groups, minlength=classes).tolist())


def _labels(shape: HeadShape, classes: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(map(str, classes if classes is not None else range(shape.outputs)))


def _check(shape: HeadShape, names: Sequence[str], labels: Sequence[str], measure: Measure) -> None:
    fitting = ("squared_error",) if shape.task == "regression" else ("log_loss", "accuracy")
    if measure not in fitting:
        raise InvalidParameter(
            f"The measure of reliance for {shape.task} must be {' or '.join(fitting)}. "
            f"Got {measure!r}."
        )
    if len(names) != len(shape.widths) or len(labels) != shape.outputs:
        raise DataError(
            f"{len(names)} names and {len(labels)} classes were given for {len(shape.widths)} "
            f"members and {shape.outputs} classes."
        )


def _plain(table: Table) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in table]


def _table(told: Sequence[Sequence[float | None]]) -> Table:
    return tuple(tuple(float("nan") if v is None else v for v in row) for row in told)
