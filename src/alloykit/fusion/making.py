"""From members and examples to a fusion that was measured: solved, or refined end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from alloykit.data.batches import Inputs
from alloykit.data.examples import Examples
from alloykit.fusion.checking import (
    Check,
    check_against_mean,
    cross_fitted,
    held_back,
    require_enough,
    settled,
)
from alloykit.fusion.collecting import Progress, gather
from alloykit.fusion.finetuning import finetune_fusion
from alloykit.fusion.gathered import Gathered
from alloykit.fusion.head import FittedHead, FusionHead
from alloykit.fusion.module import Fusion
from alloykit.fusion.reading import ContextSource, Sources
from alloykit.fusion.reliance import Reliance, reliance
from alloykit.training.rows import hold
from alloykit.training.settings import Training
from alloykit.types import Task


@dataclass(frozen=True)
class Options:
    """What is to be made of the members.

    Attributes:
        head: What to train.
        task: What the members were trained for.
        source: What the head is fed.
        context: What describes an example itself.
        classes: Number of classes, where it was said.
        seed: Of the folds and the check.
        progress: Called with (what, done, in all).
        labels: Names of the classes, where the data has them.
    """

    head: FusionHead
    task: Task
    source: Sources
    context: ContextSource
    classes: int | None
    seed: int
    progress: Progress | None
    labels: tuple[str, ...] | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """How members are read."""
        names = ("task", "source", "context", "classes", "progress")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Made:
    """A fusion, and what was measured of it.

    Attributes:
        fusion: Members and trained head.
        fitted: How the head was trained.
        check: The head against the plain mean.
        reliance: Which member it believes.
        examples: How many it was trained on.
        notes: What belongs next to the numbers.
    """

    fusion: Fusion
    fitted: FittedHead
    check: Check
    reliance: Reliance
    examples: int
    notes: tuple[str, ...]


def _fusion(
    modules: Mapping[str, nn.Module], rows: Gathered, fitted: FittedHead, options: Options
) -> Fusion:
    layers = None if rows.layers is None else dict(zip(rows.names, rows.layers, strict=True))
    made = {
        "head": options.head.name,
        "parameters": dict(options.head.parameters),
        "chosen": dict(fitted.chosen),
    }
    device = next((p.device for m in modules.values() for p in m.parameters()), None)
    fusion = Fusion(
        modules,
        fitted.module.to(device) if device is not None else fitted.module,
        task=options.task,
        kinds=rows.kinds,
        source=options.source if options.source == "outputs" else layers or "features",
        context=options.context,
        made=made,
    )
    fusion.layers = rows.layers
    return fusion


def solved(
    modules: Mapping[str, nn.Module],
    rows: Gathered,
    options: Options,
    checked: Examples | None = None,
) -> Made:
    """The head on all rows, and a check on others: by cross-fitting, or on a split of its own."""
    notes = require_enough(rows)
    fitted = options.head.fit(rows.data, rows.shape)
    if checked is None:
        measured, how = rows, "cross-fitted"
        judged: nn.Module = cross_fitted(
            settled(options.head, fitted, rows.examples), rows, seed=options.seed
        )
    else:
        asked = {**options.reading, "classes": rows.shape.outputs}
        measured, how, judged = gather(modules, checked, **asked), "held out", fitted.module
    check, found = _measured(judged, measured, options, how)
    fusion = _fusion(modules, rows, fitted, options)
    return Made(fusion, fitted, check, found, rows.examples, notes)


def refined(
    modules: Mapping[str, nn.Module],
    examples: Examples,
    options: Options,
    steps: Training | None,
    augment: Callable[[Inputs], Inputs] | None,
) -> Made:
    """The head, then training through the members; checked by the same on four fifths."""

    def trained(part: Examples) -> tuple[Fusion, FittedHead, Gathered]:
        rows = gather(modules, part, **options.reading)
        fitted = options.head.fit(rows.data, rows.shape)
        fusion, history = finetune_fusion(
            _fusion(modules, rows, fitted, options),
            hold(part),
            steps,
            members=steps is not None,
            augment=augment,
            progress=options.progress,
        )
        epochs = tuple(history.to_json()["epochs"])
        return fusion, replace(fitted, history=(*fitted.history, *epochs)), rows

    whole = gather(modules, examples, **options.reading)
    notes = require_enough(whole)
    kept, measured = held_back(examples.targets, options.seed)
    partly, _, _ = trained(examples.keep(kept))
    rest = examples.keep(measured)
    unseen = gather(partly, rest, classes=whole.shape.outputs)
    check, found = _measured(
        partly.head, unseen, options, "held out", gather(modules, rest, **options.reading)
    )
    fusion, fitted, _ = trained(examples)
    return Made(fusion, fitted, check, found, len(examples), notes)


def _measured(
    head: nn.Module,
    rows: Gathered,
    options: Options,
    how: str,
    members: Gathered | None = None,
) -> tuple[Check, Reliance]:
    """Scores of the head on rows; ``members``: what the untouched members said on them."""
    outputs = head(rows.data.members, rows.data.context).detach()
    check = check_against_mean(outputs, members or rows, how=how, seed=options.seed)
    labels = options.labels if len(options.labels or ()) == rows.shape.outputs else None
    return check, reliance(head, rows.data, rows.shape, rows.names, classes=labels)
