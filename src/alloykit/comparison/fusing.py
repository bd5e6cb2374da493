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
from alloykit.comparison.trial import Trial
from alloykit.data.splits import IGNORED
from alloykit.fusion.checking import cross_fitted, settled
from alloykit.fusion.gathered import Gathered
from alloykit.fusion.head import FittedHead, FusionHead, HeadData, HeadShape
from alloykit.fusion.module import Fusion
from alloykit.fusion.parting import FOLDS
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
        validation=judged(settled(head, fitted, len(setting.validation)), given, shape, setting),
        test=said(fitted, test, setting.test_predictions),
        model=assembled(recipe, setting),
        forward_passes=len(candidate.members),
        fit_seconds=seconds,
        notes=_notes(setting),
        history=_history(fitted, shape),
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
    rows = _scored(data)
    context = None if data.context is None else data.context[rows]
    members = tuple(member[rows] for member in data.members)
    return head.fit(HeadData(members, data.targets[rows], context), shape)


def said(fitted: FittedHead, data: HeadData, like: Predictions) -> Tensor:
    """The head's outputs, shaped like a member's."""
    with torch.no_grad():
        rows: Tensor = fitted.module(data.members, data.context)
    return rows.reshape(like.outputs.shape[1:])


def judged(head: FusionHead, data: HeadData, shape: HeadShape, setting: Setting) -> Tensor:
    """Outputs on validation where each fold is answered by a head fitted on the other folds.

    Positions without a target are in no fold, and are left at 0.
    """
    like = setting.validation_predictions
    examples, rows = like.outputs.shape[1], len(data.targets)
    owner = torch.arange(examples).repeat_interleave(rows // examples)
    kinds = (like.kind,) * len(data.members)
    whole = Gathered(data, shape, like.members, data.members, owner, kinds, None)
    scored = torch.arange(rows) if shape.task == "regression" else _scored(data)
    kept = whole.keep(scored)
    with torch.no_grad():
        heads = cross_fitted(head, kept, seed=setting.seed)
        outputs: Tensor = heads(kept.data.members, kept.data.context)
    found = outputs.new_zeros(rows, outputs.shape[-1])
    found[scored] = outputs
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


def _scored(data: HeadData) -> Tensor:
    return (data.targets != IGNORED).nonzero().flatten()


def _notes(setting: Setting) -> tuple[str, ...]:
    notes = [f"fitted on validation; its validation score is {FOLDS}-fold cross-fitted"]
    if setting.leaked:
        notes.append(
            f"{setting.leaked} validation examples are also training examples of the members: "
            "the head trusts members there more than it should"
        )
    return tuple(notes)


def _history(fitted: FittedHead, shape: HeadShape) -> dict[str, Any]:
    if not fitted.history:
        return {}
    best = fitted.chosen.get("epochs", 0)
    # Values are learned in units of their spread, so that this is no metric of the comparison.
    metric = "loss" if shape.task == "regression" else "log_loss"
    return {"epochs": list(fitted.history), "metric": metric, "best": best, "stopped": ""}


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
