"""The verb fuse: what frozen members give -> one model, through a trained head."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

from torch import nn

from alloykit.api.inputs import as_training, named_modules
from alloykit.data.batches import Inputs
from alloykit.data.examples import Examples, as_examples
from alloykit.data.splits import shared
from alloykit.errors import InvalidParameter, MissingInput, did_you_mean, listing
from alloykit.evaluation.freezing import frozen_view
from alloykit.fusion.collecting import Progress, gather
from alloykit.fusion.contract import shown_head
from alloykit.fusion.finetuning import FINE_TUNING
from alloykit.fusion.fused import Fused, FusionReport, reported
from alloykit.fusion.head import FusionHead
from alloykit.fusion.making import Made, Options, refined, solved
from alloykit.fusion.out_of_fold import Retrain, gather_out_of_fold
from alloykit.fusion.parting import FOLDS
from alloykit.fusion.reading import ContextSource, Sources, check_sources
from alloykit.numerics import is_whole
from alloykit.registry import fusion_heads
from alloykit.training.settings import Training
from alloykit.types import Split, Task

MOST = 1 << 63
"""Generators of torch take no seed above this."""


def fuse(
    members: Mapping[str, nn.Module] | Sequence[nn.Module],
    head: str | FusionHead = "concat",
    *,
    validation: Any = None,
    source: Sources = "outputs",
    context: ContextSource | None = None,
    task: Task = "classification",
    classes: int | None = None,
    train: Any = None,
    out_of_fold: Retrain | None = None,
    folds: int = FOLDS,
    augment: Callable[[Inputs], Inputs] | None = None,
    finetune: bool | Training | Mapping[str, Any] = False,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    **parameters: Any,
) -> Fused:
    """Train a head over frozen members: it learns which member to believe, and for what.

    Use it when members were trained on different partitions and there are labelled examples that
    none of them has seen: some hundred are enough for the default head, which is solved to its
    optimum from outputs computed once. Members may differ in architecture; where they differ in
    classes or in how inputs are normalised, wrap them in ``adapted`` first.

    The report says, from rows the head was not trained on, whether it beats the plain mean of the
    members. Where it does not, use the plain mean: ``alloykit.ensemble(members)``.

    Args:
        members: Modules with a common task, by name or in order. Yours keep their flags and bytes.
        head: Registered head, or one that was built; ``alloykit.methods()`` lists them.
        validation: The held-out fusion split: labelled data that no member was trained on.
        source: "outputs"; "features" of each member's last layer; or member -> layer by name.
        context: What describes an example itself, for heads that look at it: "inputs" or
            "features". By default what the head needs and nothing more.
        task: What the members were trained for.
        classes: Number of classes, where the members' outputs do not say it.
        train: The members' own training data, one split or member -> partition. Examples of
            ``validation`` found in it are reported as a leak; ``out_of_fold`` needs it by member.
        out_of_fold: ``(name, inputs, targets) -> model`` trains a copy of that member. The head is
            then trained on the members' own partitions, and ``validation`` only checks.
        folds: Of out-of-fold rows, at least 2.
        augment: Changes the inputs of a batch: the head goes on training on them, and members are
            computed anew in every epoch.
        finetune: Train copies of the members together with the head afterwards: True, or settings.
        batch_size: Examples that members see at a time where the data does not say.
        seed: Of the head, the folds and the check.
        progress: Called with (what, done, in all).
        **parameters: The head's own.

    Raises:
        MissingInput: Fewer than two members, or neither validation nor out-of-fold rows.
        InvalidParameter: Options that do not go together, or unknown parameters.
        DataError: A split too small, or outputs that do not fit.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 60).reshape(-1, 1)
        >>> y = (x[:, 0] > 0).long()
        >>> members = [nn.Linear(1, 2), nn.Linear(1, 2)]
        >>> fused = fuse(members, validation=(x, y))
        >>> fused(x).shape, fused.report.check.how
        (torch.Size([60, 2]), 'cross-fitted')
    """
    began = time.monotonic()
    split = partial(as_examples, batch_size=batch_size)
    given = named_modules(members)
    _check_values(classes, folds, batch_size, seed, task)
    _check_callables(out_of_fold=out_of_fold, augment=augment, progress=progress)
    modules = {name: frozen_view(module) for name, module in given.items()}
    built = _built(head, seed, context, parameters)
    options = Options(built, task, source, _context(built, context), classes, seed, progress)
    steps = _settings(finetune, seed)
    _check(modules, options, validation, train, out_of_fold, bool(steps or augment))
    held = None if validation is None else split(validation, "validation")
    if held is not None:
        options = replace(options, labels=held.class_names)
    notes = () if held is None or train is None else _leaks(held, train, out_of_fold, split)
    if out_of_fold is not None:
        partitions = {name: split(data, "train") for name, data in train.items()}
        rows = gather_out_of_fold(modules, partitions, out_of_fold, folds, seed, **options.reading)
        made = solved(modules, rows, options, held)
    elif steps is not None or augment is not None:
        made = refined(modules, cast(Examples, held), options, steps, augment)
    else:
        made = solved(modules, gather(modules, cast(Examples, held), **options.reading), options)
    return _reported(made, options, notes, began)


def _built(
    head: str | FusionHead, seed: int, context: ContextSource | None, parameters: dict[str, Any]
) -> FusionHead:
    if isinstance(head, FusionHead):
        if parameters:
            raise InvalidParameter(
                f"The head {head.name} is built already: give its name, or build it with "
                f"{', '.join(parameters)}."
            )
        return head
    if not isinstance(head, str):
        raise InvalidParameter(
            f"'head' must be the name of a registered head, or one that was built. Got {head!r}."
        )
    entry = fusion_heads.entry(head)
    if "seed" in entry.parameters:
        parameters = {"seed": seed, **parameters}
    if "context" in entry.parameters:
        # Heads for which it is optional are told whether there is one; the verb says which.
        parameters["context"] = context not in (None, "none")
    built: FusionHead = entry.build(**parameters)
    return built


def _context(head: FusionHead, asked: ContextSource | None) -> ContextSource:
    if asked is None:
        return "inputs" if head.context == "required" else "none"
    if asked != "none" and head.context == "none":
        raise InvalidParameter(
            f"The head {shown_head(head)} does not look at a context: leave out context={asked!r}, "
            "or choose a head that does: attention, attention_mean or gated."
        )
    return asked


def _settings(finetune: bool | Training | Mapping[str, Any], seed: int) -> Training | None:
    if finetune is False:
        return None
    if finetune is True:
        return replace(FINE_TUNING, seed=seed)
    return as_training(finetune)


def _check_values(classes: Any, folds: Any, batch_size: Any, seed: Any, task: Any) -> None:
    """Refuse numbers outside their ranges, all at once."""
    limits = {
        "classes": (classes, 2, MOST),
        "folds": (folds, 2, MOST),
        "batch_size": (batch_size, 1, MOST),
        "seed": (seed, 0, MOST),
    }
    wrong = [
        f"{name!r} must be a whole number of at least {least}. Got {value!r}"
        for name, (value, least, most) in limits.items()
        if not (is_whole(value) and least <= value < most) and (name, value) != ("classes", None)
    ]
    if task not in get_args(Task):
        hint = did_you_mean(str(task), get_args(Task))
        wrong.append(f"'task' must be one of {', '.join(get_args(Task))}. Got {task!r}.{hint}")
    if wrong:
        raise InvalidParameter(f"A fusion cannot be trained so:\n{listing(wrong)}")


def _check_callables(**given: Any) -> None:
    wrong = [
        f"{name!r} is a {type(value).__name__}"
        for name, value in given.items()
        if value is not None and not callable(value)
    ]
    if wrong:
        raise InvalidParameter(f"These must be callable:\n{listing(wrong)}")


def _check(
    modules: Mapping[str, nn.Module],
    options: Options,
    validation: Any,
    train: Any,
    out_of_fold: Retrain | None,
    refines: bool,
) -> None:
    if len(modules) < 2:
        count = "one was" if modules else "none were"
        raise MissingInput(f"A fusion takes at least two models; {count} given.")
    if validation is None and out_of_fold is None:
        raise MissingInput(
            "A head learns from labelled examples that no member was trained on: pass "
            "validation=. Without such, pass train= (member -> partition) and out_of_fold=, which "
            "retrains members on parts of their own data."
        )
    head, source = options.head, "outputs" if options.source == "outputs" else "features"
    wrong = []
    if options.task not in head.tasks:
        wrong.append(f"{head.name} serves {' and '.join(sorted(head.tasks))}, not {options.task}")
    if source not in head.sources:
        wrong.append(f"{head.name} is fed {' or '.join(sorted(head.sources))}, not {source}")
    if out_of_fold is not None and not isinstance(train, Mapping):
        wrong.append("out_of_fold needs train as a mapping: member -> partition")
    if out_of_fold is not None and refines:
        wrong.append("finetune and augment go with validation, not with out_of_fold")
    if wrong:
        raise InvalidParameter(f"These options do not go together:\n{listing(wrong)}")
    check_sources(modules, options.source, options.context)


def _leaks(
    validation: Examples,
    train: Any,
    out_of_fold: Retrain | None,
    split: Callable[[Any, Split], Examples],
) -> tuple[str, ...]:
    """What must be said of validation examples that members were trained on."""
    parts = train if isinstance(train, Mapping) and not _is_batch(train) else {"the members": train}
    notes = []
    for name, data in parts.items():
        count = len(shared(validation, split(data, "train")))
        if count:
            what = "checked" if out_of_fold is not None else "trained"
            notes.append(
                f"leak: {count} of {len(validation)} validation examples are in the training data "
                f"of {name}, so the head is {what} on what that member memorised, and its scores "
                "are too good"
            )
    if notes:
        warnings.warn("\n".join(notes), stacklevel=3)
    return tuple(notes)


def _is_batch(train: Mapping[str, Any]) -> bool:
    return any(key in train for key in ("labels", "label", "targets", "target"))


def _reported(made: Made, options: Options, leaks: tuple[str, ...], began: float) -> Fused:
    report = FusionReport(
        head=shown_head(options.head),
        examples=made.examples,
        check=made.check,
        reliance=made.reliance,
        chosen=made.fitted.chosen,
        history=made.fitted.history,
        notes=(*leaks, *made.notes),
        seconds=time.monotonic() - began,
    )
    return reported(made.fusion, report)
