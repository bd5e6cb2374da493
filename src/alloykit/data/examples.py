"""One split of examples in a fixed order, whatever it was given as."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from alloykit.data import batches as batch_of
from alloykit.data.batches import Batch, Inputs
from alloykit.data.loaders import reader
from alloykit.errors import DataError, InvalidParameter
from alloykit.types import Split


class Examples:
    """The examples of one split, readable again and again in the same order.

    Reading is lazy: the first need of the length, the targets (unless they lie in memory) or the
    digests reads everything once. Every later reading of a loader is compared with that first
    one, so that random augmentation or a shuffling sampler is an error instead of a wrong number.

    Args:
        name: Which split it is.
        read: Starts a reading of all batches.
        checked: Whether later readings are compared with the first.
        rows: Ascending positions, in the reading, of the examples that belong to the split; None
            means all.
        class_names: Names of the classes where the source has them.
        arrays: Targets of the whole reading, where they lie in memory; with them its inputs, where
            they do so as they are read, else None.
    """

    def __init__(
        self,
        name: Split,
        read: Callable[[], Iterable[Batch]],
        *,
        checked: bool = True,
        rows: Tensor | None = None,
        class_names: tuple[str, ...] | None = None,
        arrays: tuple[Inputs | None, Tensor] | None = None,
    ) -> None:
        self.name = name
        self.class_names = class_names
        self._arrays = arrays
        self._read = read
        self._checked = checked
        self._rows = rows

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"Examples({self.name!r})"

    def batches(self) -> Iterator[Batch]:
        """Pairs (inputs, targets) in the split's order, the same at every call.

        Raises:
            DataError: The source gives other examples than at the first reading.
        """
        if not self._checked:
            yield from self._selected()
            return
        known, position = self.digests(), 0
        for inputs, targets in self._selected():
            found = batch_of.digests(inputs)
            _check_unchanged(self.name, known, found, position)
            position += len(found)
            yield inputs, targets
        if position != len(known):
            _refuse_changed(self.name, position)

    @property
    def targets(self) -> Tensor:
        """The targets of all examples, [example, ...]: int64 or floating."""
        if self._arrays is None:
            return self._survey[0]
        known = self._arrays[1]
        return known if self._rows is None else known[self._rows[self._rows < len(known)]]

    def digests(self) -> list[bytes]:
        """One digest per example: of the dtype, shape and bytes of its inputs.

        Padding counts: the same sentence padded to another length has another digest.
        """
        return self._survey[1]

    @property
    def digest(self) -> str:
        """One digest of all inputs and targets, in order."""
        state = hashlib.blake2b(digest_size=16)
        for example in (*self.digests(), *batch_of.digests(self.targets)):
            state.update(example)
        return f"blake2b:{state.hexdigest()}"

    def held(self) -> Batch | None:
        """The caller's own inputs and targets, where they are all of the split; else None."""
        if self._arrays is None or self._arrays[0] is None or self._rows is not None:
            return None
        return self._arrays[0], self._arrays[1]

    def inputs_sample(self) -> Inputs:
        """The inputs of the first batch."""
        for inputs, _ in self._selected():
            return inputs
        raise DataError(f"The {self.name} split has no examples.")

    def take(self, count: int) -> Examples:
        """The first ``count`` examples (all, where there are fewer)."""
        if count < 1:
            raise InvalidParameter(f"take: the count must be at least 1. Got {count}.")
        return self._with_rows(self._known_rows(count)[:count])

    def spread(self, count: int) -> Examples:
        """``count`` examples, evenly spaced (all, where there are fewer): they may be sorted."""
        if count < 1:
            raise InvalidParameter(f"spread: the count must be at least 1. Got {count}.")
        total = len(self)
        return self if count >= total else self.keep([i * total // count for i in range(count)])

    def keep(self, positions: Sequence[int]) -> Examples:
        """The examples at these ascending positions."""
        chosen = torch.as_tensor(list(positions), dtype=torch.long)
        rows = self._known_rows(len(self))[chosen]
        return self._with_rows(rows)

    def _known_rows(self, count: int) -> Tensor:
        return torch.arange(count) if self._rows is None else self._rows

    def _with_rows(self, rows: Tensor) -> Examples:
        return Examples(
            self.name,
            self._read,
            checked=self._checked,
            rows=rows,
            class_names=self.class_names,
            arrays=self._arrays,
        )

    def _selected(self) -> Iterator[Batch]:
        if self._rows is None:
            yield from self._read()
            return
        start, rows = 0, self._rows
        for inputs, targets in self._read():
            stop = start + len(targets)
            first, last = torch.searchsorted(rows, torch.tensor([start, stop])).tolist()
            if last > first:
                local = rows[first:last] - start
                yield batch_of.transform(inputs, lambda t, i=local: t[i]), targets[local]  # type: ignore[misc]
            start = stop
            if last == len(rows):
                return

    @cached_property
    def _survey(self) -> tuple[Tensor, list[bytes]]:
        """Targets and digests of all examples, from one reading."""
        targets: list[Tensor] = []
        digests: list[bytes] = []
        for inputs, batch_targets in self._selected():
            digests += batch_of.digests(inputs)
            targets.append(batch_targets)
        if not targets:
            return torch.empty(0, dtype=torch.long), []
        shapes = {tuple(part.shape[1:]) for part in targets}
        if len(shapes) > 1:
            raise DataError(
                f"The targets of {self.name} differ in shape between batches: "
                f"{', '.join(str(list(shape)) for shape in sorted(shapes)[:3])}. "
                "Pad them to one length (with -100, which is ignored)."
            )
        return torch.cat(targets), digests


def as_examples(source: Any, name: Split, *, batch_size: int = 256) -> Examples:
    """A split in a fixed order from arrays, a Dataset, a DataLoader or batches.

    Use it when you hold data in any of the usual forms; files are read by ``sources.load_split``.

    Args:
        source: A tuple (inputs, targets) of tensors, arrays or lists, where inputs may be a tuple
            or a dict of them; a Dataset; a DataLoader (one that shuffles is re-read in order
            through its dataset, with its batch size and ``collate_fn``, its last incomplete batch
            included); a list or another re-readable iterable of batches; or Examples.
        name: Which split it is: "train", "validation" or "test".
        batch_size: Examples per batch, at least 1, where the source does not say.

    Raises:
        DataError: A generator, something unreadable, or inputs and targets of unequal lengths.

    Example:
        >>> split = as_examples(([[0.0], [1.0], [2.0]], [0, 1, 1]), "test")
        >>> len(split), split.targets.tolist()
        (3, [0, 1, 1])
    """
    if batch_size < 1:
        raise InvalidParameter(f"The batch_size must be at least 1. Got {batch_size}.")
    if isinstance(source, Examples):
        return Examples(
            name,
            source._read,
            checked=source._checked,
            rows=source._rows,
            class_names=source.class_names,
            arrays=source._arrays,
        )
    if is_pair(source):
        return from_arrays(source[0], source[1], name, batch_size=batch_size)
    return Examples(name, reader(source, name, batch_size))


def is_pair(source: Any) -> bool:
    """Whether it is (inputs, targets) of a whole split rather than a list of batches."""
    if not isinstance(source, list | tuple) or len(source) != 2:
        return False
    batches = isinstance(source, list) and all(isinstance(s, list | tuple | dict) for s in source)
    return not batches


def from_arrays(
    inputs: Any,
    targets: Any,
    name: Split,
    *,
    batch_size: int = 256,
    prepare: Callable[[Tensor], Tensor] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Examples:
    """A split held in memory; ``prepare`` is applied to each batch of inputs when it is read."""
    held = batch_of.as_inputs(inputs, f"inputs of {name}")
    known = batch_of.as_targets(targets, f"targets of {name}")
    batch_of.check_lengths(held, known, f"The {name} split")

    def read() -> Iterator[Batch]:
        for part, wanted in batch_of.in_slices(held, known, batch_size):
            yield (part if prepare is None else batch_of.transform(part, prepare)), wanted

    arrays = (held if prepare is None else None, known)
    return Examples(name, read, checked=False, class_names=class_names, arrays=arrays)


def _check_unchanged(
    name: str, known: Sequence[bytes], found: Sequence[bytes], position: int
) -> None:
    """Compare the digests of a batch at ``position`` with those of the first reading."""
    expected = known[position : position + len(found)]
    if list(expected) == list(found):
        return
    same = (one == other for one, other in zip(expected, found, strict=False))
    _refuse_changed(name, position + next((i for i, s in enumerate(same) if not s), len(expected)))


def _refuse_changed(name: str, position: int) -> NoReturn:
    raise DataError(
        f"The {name} examples changed between two readings (first at example {position + 1}). "
        "Every model must see the same examples: switch off shuffling and random augmentation "
        "in this split, or give its tensors."
    )
