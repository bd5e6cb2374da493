"""Several splits together: not empty, usable targets, no example in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from alloykit.data.examples import Examples
from alloykit.errors import DataError, DataLeak, InvalidParameter, listing
from alloykit.types import Task

IGNORED = -100
"""The target of a token that is not scored, as in torch's cross-entropy."""

OnOverlap = Literal["error", "drop", "allow"]


def check_splits(
    splits: Sequence[Examples],
    *,
    task: Task,
    classes: int | None = None,
    on_overlap: OnOverlap = "error",
) -> list[Examples]:
    """The splits, once they are fit to choose on and to report from.

    Examples are the same when their inputs have the same digest; duplicates inside one split are
    no concern of this check.

    Args:
        splits: In the order of use: those that fit or choose before the one that reports.
        task: What the targets must be: class numbers, values, or token numbers.
        classes: Number of classes C, where known: targets must lie in 0 to C - 1.
        on_overlap: "error", "drop" (from the earlier split), or "allow".

    Returns:
        The same splits; with "drop", the earlier ones without the shared examples.

    Raises:
        DataError: Empty splits or unusable targets, all listed.
        DataLeak: Two splits share examples, and ``on_overlap`` is "error".
    """
    if on_overlap not in ("error", "drop", "allow"):
        raise InvalidParameter(
            f"on_overlap must be 'error', 'drop' or 'allow'. Got {on_overlap!r}."
        )
    wrong = [line for split in splits for line in _problems(split, task, classes)]
    wrong += _unequal_classes(splits)
    if wrong:
        raise DataError(f"The data cannot be used for {task}:\n{listing(wrong)}")
    if on_overlap == "allow":
        return list(splits)
    return _without_shared(splits) if on_overlap == "drop" else _disjoint(splits)


def overlap_notes(
    given: Sequence[Examples], checked: Sequence[Examples], on_overlap: OnOverlap
) -> tuple[str, ...]:
    """What a report must say of the splits that ``check_splits`` let pass."""
    if on_overlap == "allow":
        return ("Overlap between the splits was allowed: test results may be too good.",)
    lost = [(a.name, len(a) - len(b)) for a, b in zip(given, checked, strict=True)]
    return tuple(
        f"{count} examples that are also in a later split were dropped from {name}."
        for name, count in lost
        if count
    )


def shared(one: Examples, other: Examples) -> list[int]:
    """Positions of the examples in ``one`` whose inputs also occur in ``other``."""
    known = set(other.digests())
    return [i for i, digest in enumerate(one.digests()) if digest in known]


def _disjoint(splits: Sequence[Examples]) -> list[Examples]:
    for earlier, later in combinations(splits, 2):
        if count := len(shared(later, earlier)):
            raise DataLeak(
                f"{earlier.name} and {later.name} share {count} of {len(later)} examples, so the "
                "report would be too good. Give disjoint splits; drop the shared ones from "
                f"{earlier.name} with on_overlap='drop'; or accept it with on_overlap='allow' "
                "(the report will say so)."
            )
    return list(splits)


def _without_shared(splits: Sequence[Examples]) -> list[Examples]:
    kept = list(splits)
    for i, j in combinations(range(len(kept)), 2):
        gone = set(shared(kept[i], kept[j]))
        if not gone:
            continue
        if len(gone) == len(kept[i]):
            raise DataLeak(
                f"All {len(gone)} examples of {kept[i].name} are also in {kept[j].name}: nothing "
                "is left after dropping them. Give disjoint splits."
            )
        kept[i] = kept[i].keep([p for p in range(len(kept[i])) if p not in gone])
    return kept


def _unequal_classes(splits: Sequence[Examples]) -> list[str]:
    named = [split for split in splits if split.class_names is not None]
    return [
        f"{split.name} has the classes {', '.join(split.class_names or ())}, and {named[0].name} "
        f"{', '.join(named[0].class_names or ())}: give one list with 'classes' for both"
        for split in named[1:]
        if split.class_names != named[0].class_names
    ]


def _problems(split: Examples, task: Task, classes: int | None) -> list[str]:
    if not len(split):
        found = "it has no examples"
    elif task == "regression":
        bad = int((~torch.isfinite(split.targets)).sum())
        found = f"{bad} targets are NaN or infinite" if bad else ""
    else:
        found = _wrong_form(split.targets, task) or _out_of_range(split.targets, task, classes)
    return [f"{split.name}: {found}"] if found else []


def _wrong_form(targets: Tensor, task: Task) -> str:
    if targets.is_floating_point() and targets.dim() == 2 and targets.shape[1] > 1:
        return (
            f"targets are one row of {targets.shape[1]} numbers per example, as one-hot targets "
            "are; give class numbers: targets.argmax(1)"
        )
    if targets.is_floating_point():
        return (
            f"targets are {targets.dtype} numbers, and classes are whole numbers; "
            "give targets.long(), or ask for the regression task"
        )
    if targets.dim() != (2 if task == "tokens" else 1):
        shape = "[example, position]" if task == "tokens" else "[example]"
        return f"targets have the shape {list(targets.shape)}, not {shape}"
    return ""


def _out_of_range(targets: Tensor, task: Task, classes: int | None) -> str:
    scored = targets[targets != IGNORED] if task == "tokens" else targets
    if not scored.numel():
        return f"all targets are {IGNORED}, so nothing is scored"
    bad = scored[(scored < 0) | (scored >= classes)] if classes else scored[scored < 0]
    if not bad.numel():
        return ""
    top = classes - 1 if classes else "the number of classes - 1"
    return (
        f"{bad.numel()} of {scored.numel()} targets lie outside 0 to {top} "
        f"(smallest {int(bad.min())}, largest {int(bad.max())})"
    )
