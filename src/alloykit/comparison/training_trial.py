"""Try what has to be trained: students of the members, and the ceiling and floors beside them."""

from __future__ import annotations

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
from alloykit.errors import MissingInput
from alloykit.evaluation.predicting import log_probabilities, predict
from alloykit.execution.plan import plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import merge_in_memory
from alloykit.registry import fusion_heads
from alloykit.training.history import History
from alloykit.training.loop import train
from alloykit.training.retraining import blank, retrain
from alloykit.training.rows import Part, hold
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
    kind = output_kind(setting)
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
    model = starting_point((), setting)
    model.load_state_dict(setting.kept.get(recipe["state"]))
    return model.eval()


def starting_point(start: tuple[str, ...], setting: Setting) -> nn.Module:
    """A model to train: the plain average of these members, or one that knows nothing."""
    if start:
        checkpoints = [setting.member(name).checkpoint for name in start]
        merged = merge_in_memory(plan_merge(checkpoints, "linear", {}), checkpoints, None)
        return trainable(in_form_of(setting.member(start[0]).module, merged))
    return trainable(blank(setting.student or setting.groups[0][0].module, setting.seed))


def trainable(model: nn.Module) -> nn.Module:
    """The model with all of its floating parameters to train: members come frozen."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def output_kind(setting: Setting) -> Kind:
    """What a trained model returns: what the member that it is built like does."""
    if setting.task == "regression":
        return "values"
    return "logits" if setting.student else setting.kinds[setting.groups[0][0].name]


def _taught(
    model: nn.Module, candidate: Candidate, setting: Setting
) -> tuple[History, tuple[str, ...]]:
    assert setting.training is not None
    loss = DistillationLoss(task=setting.task)
    rows = hold(setting.examples("train"))
    rows = replace(rows, extra={"teacher": teaching(candidate.learns_from, setting)})

    def of_part(student: nn.Module, part: Part) -> Tensor:
        found: Tensor = loss(forward(student, part.inputs), part.extra["teacher"], part.targets)
        return found

    history = train(model, rows, of_part, setting.training)
    return history, (f"learned from the {candidate.learns_from} and from the labels of train",)


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
        rows = hold(setting.examples("train"))
        notes = ("the ceiling: what one model learns where all data may be pooled",)
    else:
        rows = hold(setting.validation)
        notes = ("a floor: what the held-out examples alone teach; no validation score",)
    return retrain(model, rows, setting.training, task=setting.task), notes
