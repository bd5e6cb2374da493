"""Try what has to be trained: students of the members, and the ceiling and floors beside them."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from alloykit.comparison.candidate import Candidate
from alloykit.comparison.fusing import fit, head_data, head_shape, said
from alloykit.comparison.setting import Setting
from alloykit.comparison.trained_candidates import HEAD
from alloykit.comparison.trial import Trial
from alloykit.data.batches import forward
from alloykit.distillation.objective import DistillationLoss
from alloykit.ensembling.average import average
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.evaluation.predicting import log_probabilities, predict
from alloykit.execution.plan import plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import merge_in_memory
from alloykit.registry import fusion_heads
from alloykit.training.history import History
from alloykit.training.loop import train
from alloykit.training.retraining import blank, retrain, trainable
from alloykit.training.rows import Part, hold
from alloykit.training.scoring import Validation, validation_loss
from alloykit.types import Kind


def training_trial(candidate: Candidate, setting: Setting) -> Trial:
    """Train a copy, and see what it says."""
    if setting.training is None:
        raise MissingInput("A comparison trains models only where it is told how.")
    started = time.perf_counter()
    model = starting_point(candidate.start, setting)
    if candidate.family == "student":
        history, notes = _taught(model, candidate, setting)
    else:
        history, notes = _retrained(model, candidate, setting)
    seconds = time.perf_counter() - started
    recipe = {
        "kind": "trained",
        "learns_from": candidate.learns_from,
        "members": list(candidate.members),
        "start": list(candidate.start),
        "training": setting.training.to_json(),
        "state": setting.kept.put(candidate.name, model.state_dict()),
    }
    # Members that return probabilities are not trained: a softmax is not to be taken twice.
    kind: Kind = "values" if setting.task == "regression" else "logits"
    seen = candidate.learns_from == "validation"
    return Trial(
        recipe=recipe,
        validation=None if seen else log_probabilities(predict(model, setting.validation), kind),
        test=log_probabilities(predict(model, setting.test), kind),
        model=model,
        forward_passes=1,
        fit_seconds=seconds,
        notes=notes,
        history=history.to_json(),
    )


def assembled(recipe: Mapping[str, Any], setting: Setting) -> nn.Module:
    """The trained model of a recipe."""
    start = tuple(recipe["start"])
    model = copy.deepcopy(setting.member(start[0]).module) if start else _blank(setting)
    model.load_state_dict(setting.kept.get(recipe["state"]))
    return trainable(model).eval()


def starting_point(start: tuple[str, ...], setting: Setting) -> nn.Module:
    """A model to train: the plain average of these members, or one that knows nothing."""
    if not start:
        return _blank(setting)
    checkpoints = [setting.member(name).checkpoint for name in start]
    merged = merge_in_memory(plan_merge(checkpoints, "linear", {}), checkpoints, None)
    return trainable(in_form_of(setting.member(start[0]).module, merged))


def _blank(setting: Setting) -> nn.Module:
    try:
        return trainable(blank(setting.student or setting.alike[0].module, setting.seed))
    except InvalidParameter as error:
        raise MissingInput(
            f"{error} Here that callable is student=, or the study's key 'student'."
        ) from error


def _judging(setting: Setting) -> tuple[Validation | None, tuple[str, ...]]:
    """What patience goes by where it is asked for; else the last weights are kept."""
    if setting.training is None or setting.training.patience is None:
        return None, ()
    note = "its epoch was chosen on validation, so that its validation score flatters it"
    return validation_loss(setting.validation, setting.task), (note,)


def _taught(
    model: nn.Module, candidate: Candidate, setting: Setting
) -> tuple[History, tuple[str, ...]]:
    assert setting.training is not None
    loss = DistillationLoss(task=setting.task, **candidate.parameters)
    rows = hold(setting.examples("train"))
    rows = replace(rows, extra={"teacher": teaching(candidate.learns_from, setting)})

    def of_part(student: nn.Module, part: Part) -> Tensor:
        found: Tensor = loss(forward(student, part.inputs), part.extra["teacher"], part.targets)
        return found

    validation, notes = _judging(setting)
    history = train(model, rows, of_part, setting.training, validation=validation)
    if candidate.learns_from == HEAD:
        notes = ("its teacher was fitted on validation, which flatters it there a little", *notes)
    labels = " alone: one-shot FedDF" if candidate.parameters else " and from the labels of train"
    taught = f"learned from the {candidate.learns_from}{labels}"
    return history, (taught, *notes)


def teaching(teacher: str, setting: Setting) -> Tensor:
    """What the teacher says on train, shaped like a member's outputs."""
    stack = setting.train_predictions.outputs
    if teacher != HEAD:
        rule = average("values" if setting.task == "regression" else "probabilities")
        return rule.combine(stack, {})
    every = Candidate(HEAD, "fusion", HEAD, members=setting.train_predictions.members)
    given, wanted = (head_data(every, setting, split) for split in ("validation", "train"))
    fitted = fit(fusion_heads.build(HEAD), given, head_shape(every, setting, given))
    return said(fitted, wanted, setting.train_predictions)


def _retrained(
    model: nn.Module, candidate: Candidate, setting: Setting
) -> tuple[History, tuple[str, ...]]:
    assert setting.training is not None
    if candidate.learns_from == "train":
        rows, (validation, notes) = hold(setting.examples("train")), _judging(setting)
        history = retrain(model, rows, setting.training, task=setting.task, validation=validation)
        return history, ("the ceiling: what one model learns where all data may be pooled", *notes)
    # There is nothing left to judge epochs by.
    training = replace(setting.training, patience=None)
    history = retrain(model, hold(setting.validation), training, task=setting.task)
    return history, ("a floor: what the held-out examples alone teach; no validation score",)
