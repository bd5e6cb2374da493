"""Clean rows from the members' own training data: what each would say had it not seen them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs
from alloykit.data.examples import Examples, as_examples
from alloykit.data.splits import check_splits, shared
from alloykit.errors import DataError, DataLeak, InvalidParameter, listing
from alloykit.evaluation.freezing import require_modules
from alloykit.fusion.collecting import Progress, Said, answer, ask, assembled
from alloykit.fusion.gathered import Gathered
from alloykit.fusion.head import HeadData
from alloykit.fusion.parting import fold_rows
from alloykit.fusion.reading import ContextSource, Sources
from alloykit.numerics import is_whole
from alloykit.training.rows import Rows, hold
from alloykit.types import Task

Retrain = Callable[[str, Inputs, Tensor], nn.Module]
"""(member's name, inputs, targets) -> a model trained as that member was, on these examples."""


def out_of_fold(
    members: Mapping[str, nn.Module],
    partitions: Mapping[str, Any],
    retrain: Retrain,
    folds: int = 5,
    seed: int = 0,
    **asked: Any,
) -> HeadData:
    """Rows for a head from the members' own partitions, free of what they memorised.

    On partition m, member m's column is what K copies of it say, each trained without the fold
    that it speaks on; all other columns come from the members themselves, which never saw
    partition m. That takes K trainings per partition, each on (K - 1)/K of it.

    Use it when there is no labelled data besides the members' own. A head trained on rows that
    members memorised believes them more than it should: with wrong labels among 30 % of the
    training data that measures 3 to 9 points of accuracy.

    Args:
        members: By name.
        partitions: The data each member was trained on, by the member's name. Examples in two
            partitions were seen by two members, and are left out of the rows.
        retrain: Trains a copy; see ``Retrain``. Use the settings the member was trained with.
        folds: K, at least 2; 5 is scikit-learn's for stacking.
        seed: Of the folds, which hold equal parts of each class.
        **asked: task, source, context, classes and progress, as for ``collecting.gather``.

    Raises:
        InvalidParameter: ``folds`` below 2, or partitions that are not the members'.
        DataError: A partition with fewer than 2·folds examples, or copies unlike their member.
        DataLeak: Partitions that are not disjoint at all.

    Example:
        >>> parts = {"a": ([[float(i), 0.0] for i in range(4)], [0, 1, 0, 1])}
        >>> copy = lambda name, inputs, targets: nn.Identity()
        >>> out_of_fold({"a": nn.Identity()}, parts, copy, folds=2).members[0].shape
        torch.Size([4, 2])

    References:
        Wolpert, Stacked generalization, 1992, section 2; scikit-learn's ``StackingClassifier``
        retrains every member on every fold, which disjoint partitions make unnecessary.
    """
    return gather_out_of_fold(members, partitions, retrain, folds, seed, **asked).data


def gather_out_of_fold(
    members: Mapping[str, nn.Module],
    partitions: Mapping[str, Any],
    retrain: Retrain,
    folds: int = 5,
    seed: int = 0,
    *,
    task: Task = "classification",
    source: Sources = "outputs",
    context: ContextSource = "none",
    classes: int | None = None,
    progress: Progress | None = None,
) -> Gathered:
    """``out_of_fold`` with all that ``collecting.Gathered`` tells."""
    splits = _checked(members, partitions, folds, task)
    own = _seen_once(splits, folds)
    asked = ask(members, next(iter(splits.values())), task=task, source=source, context=context)
    parts = []
    for owner, examples in splits.items():
        said = {name: answer(asked, name, examples, progress=progress) for name in members}
        asked = replace(asked, kinds=tuple(found.kind for found in said.values()))
        held = hold(examples)
        for number, rows in enumerate(fold_rows(examples.targets, folds, seed), start=1):
            copy = _trained_without(owner, held, rows, retrain)
            unseen = examples.keep(rows.tolist())
            _patch(said[owner], answer(asked, owner, unseen, member=copy), rows, owner)
            if progress is not None:
                progress(f"retraining {owner}", number, folds)
        whole = assembled(asked, list(said.values()), examples, classes=classes)
        parts.append(_only(whole, own[owner]))
    return joined(parts)


def joined(parts: Sequence[Gathered]) -> Gathered:
    """The rows of several splits, one split after the other."""
    first, offset, owners = parts[0], 0, []
    for part in parts:
        owners.append(part.owner + offset)
        offset += int(part.owner.max()) + 1
    context = None
    if first.data.context is not None:
        context = torch.cat([p.data.context for p in parts if p.data.context is not None])
    members = tuple(
        torch.cat([part.data.members[m] for part in parts]) for m in range(len(first.names))
    )
    outputs = tuple(torch.cat([part.outputs[m] for part in parts]) for m in range(len(first.names)))
    data = HeadData(members, torch.cat([part.data.targets for part in parts]), context)
    shape = replace(first.shape, outputs=max(part.shape.outputs for part in parts))
    return replace(first, data=data, shape=shape, outputs=outputs, owner=torch.cat(owners))


def _checked(
    members: Mapping[str, nn.Module], partitions: Mapping[str, Any], folds: int, task: Task
) -> dict[str, Examples]:
    wrong = [f"member {name!r} has no partition" for name in members if name not in partitions]
    wrong += [f"{name!r} is no member" for name in partitions if name not in members]
    if not is_whole(folds) or folds < 2:
        wrong.append(f"'folds' must be a whole number of at least 2. Got {folds!r}")
    if wrong:
        raise InvalidParameter(f"Out-of-fold rows cannot be made:\n{listing(wrong)}")
    splits = {name: as_examples(partitions[name], "train") for name in members}
    check_splits(list(splits.values()), task=task, on_overlap="allow")
    small = [f"{name}: {len(s)} examples" for name, s in splits.items() if len(s) < 2 * folds]
    if small:
        raise DataError(
            f"Partitions too small for {folds} folds, which take {2 * folds} examples each:\n"
            f"{listing(small)}\nAsk for fewer folds, or give a held-out validation split instead."
        )
    return splits


def _seen_once(splits: Mapping[str, Examples], folds: int) -> dict[str, Tensor]:
    """The examples of each partition that are in no other one."""
    own = {}
    for name, examples in splits.items():
        others = [other for key, other in splits.items() if key != name]
        twice = {row for other in others for row in shared(examples, other)}
        own[name] = torch.tensor([i for i in range(len(examples)) if i not in twice])
    bare = [f"{name}: {len(own[name])} of {len(s)} examples" for name, s in splits.items()]
    if any(len(rows) < folds for rows in own.values()):
        raise DataLeak(
            f"The partitions are not disjoint. In no other partition are, of\n{listing(bare)}\n"
            "Out-of-fold rows need examples that only their owner was trained on. Give a held-out "
            "validation split instead."
        )
    return own


def _trained_without(owner: str, held: Rows, rows: Tensor, retrain: Retrain) -> nn.Module:
    kept = torch.ones(len(held), dtype=torch.bool)
    kept[rows] = False
    part = held.part(kept.nonzero().flatten())
    copy = retrain(owner, part.inputs, cast(Tensor, part.targets))
    if not isinstance(copy, nn.Module):
        raise DataError(
            f"'retrain' returned a {type(copy).__name__} for {owner}: it must return the trained "
            "model."
        )
    require_modules({f"the copy of {owner}": copy})
    return copy


def _patch(said: Said, copied: Said, rows: Tensor, owner: str) -> None:
    """Write what a copy said in the place of what its member had said."""
    pairs = [(said.outputs, copied.outputs, "outputs")]
    if said.features is not None and copied.features is not None:
        pairs.append((said.features, copied.features, "features"))
    for whole, part, what in pairs:
        if whole.shape[-1] != part.shape[-1]:
            raise DataError(
                f"A retrained copy of {owner} gives {part.shape[-1]} {what} where {owner} gives "
                f"{whole.shape[-1]}. Train copies of the same architecture, for all classes."
            )
        each = len(part) // len(rows)
        places = (rows[:, None] * each + torch.arange(each)).flatten()
        whole[places] = part


def _only(whole: Gathered, own: Tensor) -> Gathered:
    kept = torch.isin(whole.owner, own)
    return whole if bool(kept.all()) else whole.keep(kept.nonzero().flatten())
