"""Try a fusion head: fitted on validation, judged there by cross-fitting, rebuilt from its row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from alloykit.comparison.candidate import Candidate
from alloykit.comparison.setting import Setting
from alloykit.comparison.trial import FOLDS, Trial, folds
from alloykit.data.splits import IGNORED
from alloykit.fusion.checking import settled
from alloykit.fusion.head import FittedHead, FusionHead, HeadData, HeadShape
from alloykit.fusion.module import Fusion
from alloykit.fusion.reliance import reliance
from alloykit.registry import fusion_heads
from alloykit.types import Predictions, Split


def fusion_trial(candidate: Candidate, setting: Setting) -> Trial:
    """Fit the head on validation, and see what it says on test."""
    head: FusionHead = fusion_heads.build(candidate.method, **candidate.parameters)
    given, test = (head_data(candidate, setting, split) for split in ("validation", "test"))
    shape = head_shape(candidate, setting, given)
    started = time.perf_counter()
    fitted = fit(head, given, shape)
    seconds = time.perf_counter() - started
    recipe = {
        "kind": "fusion",
        "head": candidate.method,
        "parameters": dict(candidate.parameters),
        "chosen": dict(fitted.chosen),
        "members": list(candidate.members),
        "source": candidate.source,
        "context": candidate.context,
        "shape": asdict(shape),
        "state": setting.kept.put(candidate.name, fitted.module.state_dict()),
    }
    return Trial(
        recipe=recipe,
        validation=cross_fitted(settled(head, fitted), given, shape, setting),
        test=said(fitted, test, setting.test_predictions),
        model=assembled(recipe, setting),
        forward_passes=len(candidate.members),
        fit_seconds=seconds,
        notes=_notes(setting),
        history=_history(fitted),
        reliance=_reliance(fitted, test, shape, candidate, setting),
    )


def head_data(candidate: Candidate, setting: Setting, split: Split) -> HeadData:
    """What the candidate's head is fed on a split: one row per example, or per position."""
    targets = setting.examples(split).targets
    if candidate.source == "features":
        data = setting.features(split).data
        return data if candidate.context != "none" else replace(data, context=None)
    stack = setting.predictions(split).outputs
    context = None if candidate.context == "none" else setting.features(split).data.context
    if setting.task == "regression":
        rows = stack.flatten(2)
        return HeadData(tuple(rows), targets.reshape(rows.shape[1:]).float(), context)
    return HeadData(tuple(stack.flatten(1, -2)), targets.flatten(), context)


def head_shape(candidate: Candidate, setting: Setting, data: HeadData) -> HeadShape:
    """What the candidate's head is built for."""
    outputs = setting.validation_predictions.outputs
    return HeadShape(
        widths=tuple(member.shape[-1] for member in data.members),
        outputs=outputs[0].flatten(1).shape[1]
        if setting.task == "regression"
        else outputs.shape[-1],
        task=setting.task,
        context=0 if data.context is None else data.context.shape[1],
        source=candidate.source,
    )


def fit(head: FusionHead, data: HeadData, shape: HeadShape) -> FittedHead:
    """Fit on the rows that have a target."""
    if shape.task == "regression":
        return head.fit(data, shape)
    return head.fit(_rows(data, data.targets != IGNORED), shape)


def said(fitted: FittedHead, data: HeadData, like: Predictions) -> Tensor:
    """The head's outputs, shaped like a member's."""
    with torch.no_grad():
        rows: Tensor = fitted.module(data.members, data.context)
    return rows.reshape(like.outputs.shape[1:])


def cross_fitted(head: FusionHead, data: HeadData, shape: HeadShape, setting: Setting) -> Tensor:
    """Outputs on validation where each fold is answered by a head fitted on the other folds."""
    like = setting.validation_predictions
    examples = like.outputs.shape[1]
    per_example = len(data.targets) // examples
    found = torch.empty(like.outputs.shape[1:]).flatten(0, -2)
    for rest, held in folds(examples, setting.seed):
        fitted = fit(head, _rows(data, _positions(rest, per_example)), shape)
        held_rows = _positions(held, per_example)
        part = _rows(data, held_rows)
        with torch.no_grad():
            rows = fitted.module(part.members, part.context)
        found[held_rows] = rows.reshape(len(held_rows), -1) if found.ndim > 1 else rows.flatten()
    return found.reshape(like.outputs.shape[1:])


def assembled(recipe: Mapping[str, Any], setting: Setting) -> Fusion:
    """The fusion of a recipe, its head as it was trained."""
    shape = recipe["shape"]
    head: FusionHead = fusion_heads.build(recipe["head"], **recipe["parameters"])
    module = head.build(HeadShape(**{**shape, "widths": tuple(shape["widths"])}))
    module.load_state_dict(setting.kept.get(recipe["state"]))
    members = {name: setting.member(name).module for name in recipe["members"]}
    return Fusion(
        members,
        module,
        task=setting.task,
        kinds=[setting.kinds[name] for name in members],
        source=recipe["source"],
        context=recipe["context"],
        made={key: recipe[key] for key in ("head", "parameters", "chosen")},
    )


def _rows(data: HeadData, rows: Tensor) -> HeadData:
    context = None if data.context is None else data.context[rows]
    return HeadData(tuple(member[rows] for member in data.members), data.targets[rows], context)


def _positions(examples: Tensor, per_example: int) -> Tensor:
    """Rows of these examples, where each has so many."""
    return (examples[:, None] * per_example + torch.arange(per_example)).flatten()


def _notes(setting: Setting) -> tuple[str, ...]:
    notes = [f"fitted on validation; its validation score is {FOLDS}-fold cross-fitted"]
    if setting.leaked:
        notes.append(
            f"{setting.leaked} validation examples are also training examples of the members: "
            "the head trusts members there more than it should"
        )
    return tuple(notes)


def _history(fitted: FittedHead) -> dict[str, Any]:
    if not fitted.history:
        return {}
    best = fitted.chosen.get("epochs", 0)
    return {"epochs": list(fitted.history), "metric": "log_loss", "best": best, "stopped": ""}


def _reliance(
    fitted: FittedHead, data: HeadData, shape: HeadShape, candidate: Candidate, setting: Setting
) -> dict[str, Any]:
    """Whom the head believes on test, for the report: members down, classes across."""
    if shape.task != "classification":
        return {}
    found = reliance(
        fitted.module, data, shape, candidate.members, classes=setting.test.class_names
    )
    attended = found.class_attention is not None
    table = found.class_attention or found.loss
    return {
        "members": list(found.members),
        "classes": list(found.classes),
        "what": "Mean attention of the head, on test examples of each class."
        if attended
        else "How much the log loss on test examples of each class would rise without the member.",
        "matrix": [list(column) for column in zip(*table, strict=True)],
    }
