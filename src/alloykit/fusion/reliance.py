"""Which member a trained head believes, and for which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alloykit.errors import DataError, InvalidParameter
from alloykit.fusion.head import HeadData, HeadShape

Measure = Literal["log_loss", "accuracy", "squared_error"]
Table = tuple[tuple[float, ...], ...]

MOST_CLASSES = 1000
"""Classes that are told apart; of a larger vocabulary those with the most rows."""


@dataclass(frozen=True)
class Reliance:
    """What a head would lose without each member, and how much it attends to it.

    Attributes:
        members: Names.
        classes: Names of the classes, or of the outputs for regression; of more than 1000 classes
            those with the most rows.
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
            "class_attention": _plain(self.class_attention),
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
    kept = _frequent(groups, shape.outputs)
    rise = torch.stack(rises, dim=-1)
    by_class = None
    if listened is not None and groups is not None:
        by_class = _by_class(listened, groups, kept)
    return Reliance(
        members=names,
        classes=tuple(labels[place] for place in kept.tolist()),
        counts=_counts(groups, kept, shape.outputs, len(data.targets)),
        measure=measure,
        loss=_by_class(rise, groups, kept),
        overall=tuple(rise.flatten(0, -2).mean(0).tolist()),
        attention=None if listened is None else tuple(listened.mean(0).tolist()),
        class_attention=by_class,
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


def _by_class(values: Tensor, groups: Tensor | None, kept: Tensor) -> Table:
    """Means over the rows of each class; over all rows, per output, where there are no groups."""
    if groups is None:
        return tuple(map(tuple, values.mean(0).tolist()))
    classes = int(torch.cat([groups, kept]).max()) + 1
    sums = values.new_zeros(classes, values.shape[-1]).index_add_(0, groups, values)
    means = sums / torch.bincount(groups, minlength=classes)[:, None]
    return tuple(map(tuple, means[kept].tolist()))


def _frequent(groups: Tensor | None, classes: int) -> Tensor:
    """All classes; of a large vocabulary those with the most rows."""
    if groups is None or classes <= MOST_CLASSES:
        return torch.arange(classes)
    counts = torch.bincount(groups, minlength=classes)
    return counts.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values


def _counts(groups: Tensor | None, kept: Tensor, classes: int, rows: int) -> tuple[int, ...]:
    if groups is None:
        return (rows,) * classes
    return tuple(torch.bincount(groups, minlength=classes)[kept].tolist())


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


def _plain(table: Table | None) -> list[list[float | None]] | None:
    if table is None:
        return None
    return [[None if value != value else value for value in row] for row in table]


def _table(told: Sequence[Sequence[float | None]]) -> Table:
    return tuple(tuple(float("nan") if v is None else v for v in row) for row in told)
