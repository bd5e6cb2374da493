"""Training data that is reached by position, so that any order of it can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from alloykit.data import batches as batch_of
from alloykit.data.batches import Inputs
from alloykit.data.examples import Examples
from alloykit.data.splits import IGNORED
from alloykit.data.storage import MEMORY_LIMIT, room
from alloykit.errors import DataError, listing


class Columns(Protocol):
    """Something with a row per example: a tensor, or a store on disk."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The rows at these positions."""


@dataclass(frozen=True, eq=False)
class Part:
    """The examples of one batch.

    Attributes:
        inputs: What the model is called with.
        targets: ``[example, ...]``, or None.
        extra: Further columns, for example a teacher's outputs.
        rows: Positions of the examples in the data.
    """

    inputs: Inputs
    targets: Tensor | None
    extra: Mapping[str, Tensor]
    rows: Tensor

    def placed(self, model: nn.Module) -> Part:
        """The same where the model is; real inputs in its floating dtype."""
        inputs = batch_of.placed(self.inputs, model)
        device = batch_of.parts(inputs)[0].device
        targets = None if self.targets is None else self.targets.to(device)
        extra = {name: column.to(device) for name, column in self.extra.items()}
        return replace(self, inputs=inputs, targets=targets, extra=extra)


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples that are reached by position.

    Attributes:
        inputs: Of all examples; memory-mapped tensors are read row by row.
        targets: ``[example, ...]``, or None where the loss needs none.
        extra: Further columns by name, one row per example.
        augment: Changes the inputs of a batch. It draws from torch's generator, which the loop
            seeds for each step, so that augmentation repeats.

    Raises:
        DataError: No examples, or columns of unequal lengths; all are listed.

    Example:
        >>> rows = Rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1]))
        >>> rows.part(torch.tensor([2, 0])).targets.tolist()
        [1, 0]
    """

    inputs: Inputs
    targets: Tensor | None = None
    extra: Mapping[str, Columns] = field(default_factory=dict)
    augment: Callable[[Inputs], Inputs] | None = None

    def __post_init__(self) -> None:
        named = dict(_columns(self))
        lengths = {name: len(column) if _has_rows(column) else 0 for name, column in named.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            lines = [f"{name}: {count}" for name, count in lengths.items()]
            raise DataError(
                "Training takes at least one example, and one row of every column per example. "
                f"Got these numbers of rows:\n{listing(lines) or '  no inputs'}"
            )

    def __len__(self) -> int:
        return batch_of.length(self.inputs)

    def part(self, rows: Tensor) -> Part:
        """The examples at these positions, augmented."""
        inputs = batch_of.transform(self.inputs, lambda tensor: tensor[rows])
        if self.augment is not None:
            inputs = _augmented(self.augment, inputs)
        targets = None if self.targets is None else self.targets[rows]
        return Part(inputs, targets, {name: c[rows] for name, c in self.extra.items()}, rows)

    def scored(self, rows: Tensor) -> int:
        """What the mean loss of these rows is a mean over: targets that are not ignored (-100).

        Weighing batches by it makes their mean that of the whole, whatever padding they have.
        """
        if self.targets is None or self.targets.is_floating_point():
            return len(rows)
        return int((self.targets[rows] != IGNORED).sum())


def hold(examples: Examples, *, memory_limit: int = MEMORY_LIMIT) -> Rows:
    """All examples of a split by position: in memory, memory-mapped above the limit.

    A split of tensors that nothing is done to is used as it is; others are read through once
    (and once before that, where their number is not known yet).

    Args:
        examples: The split.
        memory_limit: Bytes of inputs kept in memory; larger ones go to a temporary file.

    Raises:
        DataError: No examples, or batches whose inputs differ in kind, dtype or shape.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> len(hold(as_examples(([[1.0], [2.0]], [0, 1]), "train")))
        2
    """
    held = examples.held()
    return Rows(*held) if held is not None else hold_all([examples], memory_limit)


def hold_all(splits: Sequence[Examples], memory_limit: int = MEMORY_LIMIT) -> Rows:
    """The examples of one or several splits, one split after the other, as ``hold`` does."""
    targets = _joined_targets(splits)
    total, done = len(targets), 0
    kept: dict[object, Tensor] = {}
    like: Inputs | None = None
    for split in splits:
        for inputs, _ in split.batches():
            named = _named(inputs)
            if like is None:
                like = inputs
                limit = memory_limit // len(named)
                kept = {
                    name: room((total, *tensor.shape[1:]), limit, tensor.dtype)
                    for name, tensor in named.items()
                }
            _check_kind(named, kept, split.name, done)
            for name, tensor in named.items():
                kept[name][done : done + len(tensor)] = tensor
            done += batch_of.length(inputs)
    if like is None:
        raise DataError(f"The {splits[0].name} split has no examples.")
    return Rows(_as(like, kept), targets)


def _joined_targets(splits: Sequence[Examples]) -> Tensor:
    every = [split.targets for split in splits if len(split)]
    kinds = {f"{targets.dtype} {list(targets.shape[1:])}" for targets in every}
    if len(kinds) > 1:
        raise DataError(
            f"The targets of the splits differ: {' and '.join(sorted(kinds))} per example. "
            "Bring them to one shape and dtype."
        )
    return torch.cat(every) if every else torch.empty(0)


def _augmented(augment: Callable[[Inputs], Inputs], inputs: Inputs) -> Inputs:
    changed = augment(inputs)
    given = batch_of.parts(changed) if isinstance(changed, Tensor | tuple | dict) else []
    count = batch_of.length(inputs)
    if not given or any(not isinstance(t, Tensor) or len(t) != count for t in given):
        found = [list(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in given]
        raise DataError(
            f"'augment' was given a batch of {count} examples and returned "
            f"{' and '.join(map(str, found)) or type(changed).__name__}. It must return as many, "
            "in the same form: a tensor, a tuple or a dict of tensors."
        )
    return changed


def _columns(rows: Rows) -> list[tuple[str, Columns]]:
    inputs = [(f"inputs {name}", tensor) for name, tensor in _named(rows.inputs).items()]
    if len(inputs) == 1:
        inputs = [("inputs", inputs[0][1])]
    targets = [] if rows.targets is None else [("targets", rows.targets)]
    return [*inputs, *targets, *((f"extra {name!r}", c) for name, c in rows.extra.items())]


def _has_rows(column: Columns) -> bool:
    return not (isinstance(column, Tensor) and column.dim() == 0)


def _named(inputs: Inputs) -> dict[object, Tensor]:
    named = inputs.items() if isinstance(inputs, dict) else enumerate(batch_of.parts(inputs))
    return dict(named)


def _as(like: Inputs, kept: Mapping[object, Tensor]) -> Inputs:
    if isinstance(like, Tensor):
        return kept[0]
    if isinstance(like, dict):
        return {str(name): tensor for name, tensor in kept.items()}
    return tuple(kept.values())


def _check_kind(
    found: Mapping[object, Tensor], kept: Mapping[object, Tensor], name: str, done: int
) -> None:
    def kind(tensors: Mapping[object, Tensor]) -> dict[object, str]:
        return {n: f"{t.dtype} {list(t.shape[1:])}" for n, t in tensors.items()}

    first, now = kind(kept), kind(found)
    if first != now:
        raise DataError(
            f"The inputs of {name} differ between batches: {first} per example at first, and {now} "
            f"in the batch at example {done + 1}. Bring all examples to one shape and dtype."
        )
