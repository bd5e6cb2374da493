"""Try one candidate: its outputs on validation and test, the recipe that rebuilds it, its model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from alloykit.comparison.assembly import assemble
from alloykit.comparison.candidate import Candidate
from alloykit.comparison.federated import federated_trial
from alloykit.comparison.fusing import fusion_trial
from alloykit.comparison.setting import Setting
from alloykit.comparison.training_trial import training_trial
from alloykit.comparison.trial import FOLDS, Trial, folds
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.rule import starting_state
from alloykit.errors import MissingInput
from alloykit.evaluation.batch_norm import has_batch_norm
from alloykit.evaluation.predicting import log_probabilities, predict
from alloykit.evaluation.weighting import weights_from_scores
from alloykit.registry import ensemble_rules, soups
from alloykit.soups.contract import Choice
from alloykit.soups.judge import Judge
from alloykit.types import EnsembleRule, Split


def try_candidate(candidate: Candidate, setting: Setting) -> Trial:
    """Fit, combine and predict. Test data is only predicted on, never looked at for a choice."""
    if candidate.family == "member":
        return _member(candidate, setting)
    if candidate.family == "predictions":
        return _ensemble(candidate, setting)
    if candidate.family == "fusion":
        return fusion_trial(candidate, setting)
    if candidate.family in ("student", "retrained"):
        return training_trial(candidate, setting)
    if candidate.family == "federated":
        return federated_trial(candidate, setting)
    return _merge(candidate, setting)


def _member(candidate: Candidate, setting: Setting) -> Trial:
    index = setting.validation_predictions.members.index(candidate.members[0])
    return Trial(
        recipe={"kind": "member", "members": list(candidate.members)},
        validation=setting.validation_predictions.outputs[index],
        test=setting.test_predictions.outputs[index],
        model=setting.member(candidate.members[0]).module,
        forward_passes=1,
        fit_seconds=0.0,
    )


def _ensemble(candidate: Candidate, setting: Setting) -> Trial:
    rule: EnsembleRule = ensemble_rules.build(candidate.method, **candidate.parameters)
    stack, targets = _rows_of(candidate, setting, "validation"), setting.validation.targets
    count = len(candidate.members)
    started = time.perf_counter()
    state = starting_state(rule, count) if rule.fit is None else rule.fit(stack, targets)
    seconds = time.perf_counter() - started
    recipe = {
        "kind": "ensemble",
        "rule": candidate.method,
        "parameters": dict(candidate.parameters),
        "members": list(candidate.members),
        "state": {name: tensor.tolist() for name, tensor in state.items()},
    }
    fitted, model = rule.fit is not None, assemble(recipe, setting)
    weights = state.get("weights")
    return Trial(
        recipe=recipe,
        validation=cross_fitted(rule, stack, targets, setting.seed)
        if fitted
        else rule.combine(stack, state),
        test=rule.combine(_rows_of(candidate, setting, "test"), state),
        model=model.without_unused() if isinstance(model, Ensemble) else model,
        forward_passes=count if weights is None else int((weights != 0).sum()),
        fit_seconds=seconds,
        notes=(f"fitted on validation; its validation score is {FOLDS}-fold cross-fitted",)
        if fitted
        else (),
    )


def _rows_of(candidate: Candidate, setting: Setting, split: Split) -> Tensor:
    """The stack of the candidate's members on that split."""
    predictions = setting.predictions(split)
    if candidate.members == predictions.members:
        return predictions.outputs
    return predictions.outputs[[predictions.members.index(name) for name in candidate.members]]


def cross_fitted(rule: EnsembleRule, stack: Tensor, targets: Tensor, seed: int) -> Tensor:
    """Outputs on validation where each fold is combined by a rule fitted on the other folds.

    A rule that was fitted on the very examples that it is scored on looks better than it is, and
    would be chosen for that.
    """
    assert rule.fit is not None
    count = stack.shape[1]
    pooled: Tensor | None = None
    for rest, held in folds(count, seed):
        state = rule.fit(stack[:, rest], targets[rest])
        part = rule.combine(stack[:, held], state)
        if pooled is None:
            pooled = part.new_empty((count, *part.shape[1:]))
        pooled[held] = part
    if pooled is None:
        raise MissingInput("Cross-fitting needs examples, and validation has none.")
    return pooled


def _merge(candidate: Candidate, setting: Setting) -> Trial:
    started = time.perf_counter()
    recipe = _merge_recipe(candidate, setting)
    seconds = time.perf_counter() - started
    model = assemble(recipe, setting)
    # That of the members: a merge of single logits may happen to lie in [0, 1].
    kind = setting.kinds[candidate.members[0]]
    return Trial(
        recipe=recipe,
        validation=log_probabilities(predict(model, setting.validation), kind),
        test=log_probabilities(predict(model, setting.test), kind),
        model=model,
        forward_passes=1,
        fit_seconds=seconds,
        notes=tuple(_merge_notes(recipe, model)),
    )


def _merge_recipe(candidate: Candidate, setting: Setting) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "kind": "merge",
        "method": "linear" if candidate.aligned else candidate.method,
        "aligned": candidate.aligned,
        "parameters": dict(candidate.parameters),
        "members": list(candidate.members),
        "weights": list(_metric_weights(candidate, setting)) if candidate.weights_by else None,
        "base": setting.base.id if setting.base is not None else None,
        "batch_norm": setting.batch_norm.name if setting.batch_norm is not None else None,
    }
    if candidate.family != "soup":
        return recipe
    group = [setting.member(name) for name in candidate.members]
    judge = Judge(
        group[0].module,
        setting.validation,
        setting.metric,
        setting.task,
        batch_norm=setting.batch_norm,
        kind=setting.kinds[group[0].name],
    )
    chooser = soups.build(candidate.method, **candidate.parameters)
    choice: Choice = chooser([member.checkpoint for member in group], judge, setting.base)
    return recipe | {
        "method": choice.method,
        "parameters": dict(choice.parameters),
        "weights": list(choice.weights),
        # One member alone keeps the BatchNorm statistics that it was trained with.
        "batch_norm": recipe["batch_norm"] if choice.mixes else None,
        "chosen_by": {"soup": candidate.method, "trials": list(choice.trials)},
    }


def _merge_notes(recipe: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    if "chosen_by" in recipe:
        yield "chosen on validation, so that its validation score flatters it"
    if recipe.get("aligned"):
        yield "units matched by weights; what each member computes stays the same"
    if has_batch_norm(model) and recipe["batch_norm"]:
        yield f"BatchNorm statistics re-estimated on {recipe['batch_norm']} inputs"


def _metric_weights(candidate: Candidate, setting: Setting) -> tuple[float, ...]:
    """One weight per member of the candidate, from its own score on validation."""
    predictions = setting.validation_predictions
    indices = [predictions.members.index(name) for name in candidate.members]
    targets = setting.validation.targets
    scores = [setting.metric.value(predictions.outputs[index], targets) for index in indices]
    return weights_from_scores(scores, setting.metric)
