"""From a trial to a row: metrics, intervals, paired differences and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from alloykit.comparison.candidate import Candidate
from alloykit.comparison.setting import Setting
from alloykit.comparison.trial import Trial
from alloykit.data.examples import Examples
from alloykit.evaluation.calibration import reliability
from alloykit.evaluation.costs import measure
from alloykit.evaluation.metrics import Metric, for_task
from alloykit.evaluation.uncertainty import bootstrap, improvement, mcnemar
from alloykit.types import Interval, Row, Task


@dataclass(frozen=True)
class Reference:
    """The best single member, which every candidate is compared with.

    Attributes:
        name: Its name.
        validation: Its pooled outputs on validation.
        test: Its pooled outputs on test.
    """

    name: str
    validation: Tensor
    test: Tensor


def best_single(setting: Setting) -> Reference:
    """The member with the best main metric on validation; ties go to the first."""
    predictions, targets = setting.validation_predictions, setting.validation.targets
    sign = 1.0 if setting.metric.higher_is_better else -1.0
    scores = [sign * setting.metric.value(o, targets) for o in predictions.outputs]
    index = scores.index(max(scores))
    return Reference(
        name=predictions.members[index],
        validation=predictions.outputs[index],
        test=setting.test_predictions.outputs[index],
    )


class Judged(Protocol):
    """What is reported of: a comparison, or anything else that has a test split."""

    @property
    def test(self) -> Examples:
        """The split that reports."""

    @property
    def task(self) -> Task:
        """How outputs and targets are read."""

    @property
    def metric(self) -> Metric:
        """The main metric."""


def metrics_shown(setting: Judged) -> list[Metric]:
    """The main metric first, then the task's others."""
    others = [m for m in for_task(setting.task) if m.name != setting.metric.name]
    return [setting.metric, *others]


def measured(candidate: Candidate, trial: Trial, setting: Setting, reference: Reference) -> Row:
    """The row of a candidate that was tried."""
    targets = setting.test.targets
    shown, judged = metrics_shown(setting), trial.validation
    single = candidate.family == "member" and candidate.members == (reference.name,)
    return Row(
        candidate=candidate.name,
        family=candidate.family,
        status="done",
        members=candidate.members,
        recipe=trial.recipe,
        validation={}
        if judged is None
        else {m.name: m.value(judged, setting.validation.targets) for m in shown},
        test={m.name: m.value(trial.test, targets) for m in shown},
        intervals={
            m.name: bootstrap(m, trial.test, targets, **_resampling(setting))
            for m in shown
            if m.name == setting.metric.name or m.contributions is not None
        },
        improvement=None if single else _gain(setting, trial.test, reference.test, targets),
        validation_improvement=None
        if single or judged is None
        else _gain(setting, judged, reference.validation, setting.validation.targets),
        p_value=None if single else _mcnemar(setting, trial.test, reference.test, targets),
        validation_p_value=None
        if single or judged is None
        else _mcnemar(setting, judged, reference.validation, setting.validation.targets),
        costs=replace(
            measure(
                trial.model,
                setting.validation.inputs_sample(),
                forward_passes=trial.forward_passes,
            ),
            fit_seconds=trial.fit_seconds,
        ),
        calibration=() if setting.task == "regression" else reliability(trial.test, targets),
        history=trial.history,
        reliance=trial.reliance,
        notes=trial.notes,
    )


def _gain(setting: Setting, outputs: Tensor, reference: Tensor, targets: Tensor) -> Interval:
    return improvement(setting.metric, outputs, reference, targets, **_resampling(setting))


def _mcnemar(setting: Setting, outputs: Tensor, reference: Tensor, targets: Tensor) -> float | None:
    """The test is about accuracy, so that it says nothing about any other main metric."""
    if setting.task != "classification" or setting.metric.name != "accuracy":
        return None
    return mcnemar(outputs, reference, targets)


def _resampling(setting: Setting) -> Mapping[str, Any]:
    return {"seed": setting.seed, "resamples": setting.resamples}


def agreement(setting: Setting) -> tuple[tuple[float, ...], ...]:
    """How alike the members are on test: same predicted class, or correlation of the errors."""
    outputs = setting.test_predictions.outputs
    if setting.task == "regression":
        errors = outputs - setting.test.targets.reshape(outputs.shape[1:])
        return tuple(tuple(row) for row in torch.corrcoef(errors.flatten(1)).reshape(
            len(errors), len(errors)).nan_to_num(1.0).tolist())  # fmt: skip
    predicted = outputs.argmax(dim=-1).flatten(1)
    return tuple(
        tuple(float((one == other).double().mean()) for other in predicted) for one in predicted
    )
