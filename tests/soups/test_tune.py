from __future__ import annotations

import math

import pytest
import torch

import alloykit
import digits_samples as digits
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter, MissingInput, UnknownName
from alloykit.evaluation.uncertainty import bootstrap
from alloykit.soups.tune import Tunable, _golden_section, tuned


def tunable(method="task_arithmetic", parameter="scale", **given):
    models = digits.members()
    start = MemoryCheckpoint(models["start"].state_dict(), id="start")
    members = [
        MemoryCheckpoint(models[f"tuned {seed}"].state_dict(), id=f"tuned {seed}")
        for seed in range(3)
    ]
    return Tunable(members, method, parameter, base=start, **given)


@pytest.mark.parametrize("measure", ["accuracy", "log_loss"])
def test_a_grid_keeps_the_best_that_was_tried(measure):
    choice = tuned(tunable(), digits.judge(measure=measure), values=[-1.0, 0.2, 0.6, 3.0])
    assert [trial["scale"] for trial in choice.trials] == [-1.0, 0.2, 0.6, 3.0]
    values = [trial[measure] for trial in choice.trials]
    assert choice.value == (max if measure == "accuracy" else min)(values)
    assert choice.method == "task_arithmetic"
    assert choice.mixes


def test_what_was_measured_is_the_merge_at_that_value():
    judge = digits.judge()
    open_one = tunable()
    choice = tuned(open_one, judge, values=[0.25])
    models = digits.members()
    merged = alloykit.merge(
        [models[f"tuned {i}"] for i in range(3)],
        "task_arithmetic",
        base=models["start"],
        parameters={"scale": 0.25},
    )
    assert choice.value == judge.value(merged.state_dict())


def test_values_that_score_the_same_go_to_the_one_nearest_the_default():
    same = digits.members()["start"].state_dict()
    members = [MemoryCheckpoint(same, id=name) for name in "ab"]
    flat = Tunable(members, "task_arithmetic", "scale", base=MemoryCheckpoint(same, id="base"))
    choice = tuned(flat, digits.judge(), values=[0.1, 3.0, 0.8, 1.3])
    assert choice.parameters == {"scale": 0.8}


def test_one_standard_error_goes_towards_the_default():
    judge, values = digits.judge(), [0.1, 0.4, 0.6, 0.9, 1.3, 1.6, 2.0, 3.0]
    best = tuned(tunable(), judge, values=values)
    careful = tuned(tunable(), judge, values=values, rule="one_se")
    outputs = judge.outputs(tunable().merged(best.parameters["scale"]))
    interval = bootstrap("accuracy", outputs, judge.validation.targets, level=0.6827)
    error = (interval.high - interval.low) / 2
    within = [t["scale"] for t in best.trials if t["accuracy"] >= best.value - error]
    assert careful.parameters["scale"] == min(within, key=lambda scale: abs(scale - 1.0))
    assert best.value - error <= careful.value <= best.value
    # It is a rule of its own: something within the error is nearer the default than the best.
    assert abs(careful.parameters["scale"] - 1) < abs(best.parameters["scale"] - 1)


def test_golden_section_finds_the_top_of_a_hill():
    tried = []

    def hill(x):
        tried.append(x)
        return -((x - 0.7) ** 2)

    _golden_section(hill, 0.0, 3.0, 14)
    assert len(tried) == 14
    assert min(abs(x - 0.7) for x in tried) < 0.01
    assert all(0.0 < x < 3.0 for x in tried)


def test_golden_section_tunes_a_merge():
    choice = tuned(tunable(), digits.judge(measure="log_loss"), bounds=(0.0, 4.0), points=8)
    assert len(choice.trials) == 8
    grid = tuned(tunable(), digits.judge(measure="log_loss"), values=[i / 5 for i in range(21)])
    assert choice.value <= grid.value + 1e-3


def test_other_parameters_weights_and_statistics_are_passed_on():
    weights = (1.0, 0.0, 0.5)
    choice = tuned(
        tunable("ties", parameters={"density": 0.3}, weights=weights), digits.judge(), values=[0.5]
    )
    assert choice.parameters == {"density": 0.3, "scale": 0.5}
    assert choice.weights == weights
    grams = [
        MemoryCheckpoint(
            {"0.weight": torch.eye(64), "2.weight": (i + 1.0) * torch.eye(24)}, id=f"gram {i}"
        )
        for i in range(3)
    ]
    made = tunable("regmean", "reduce_non_diagonal", stats={"gram": grams})
    assert tuned(made, digits.judge(), values=[0.1, 0.9]).parameters.keys() == {
        "reduce_non_diagonal"
    }


def test_a_score_that_is_not_a_number_is_never_chosen():
    judge = digits.judge()
    judge.metric = type(judge.metric)(
        "odd",
        True,
        judge.metric.tasks,
        lambda outputs, _: math.nan if outputs.max() > -1e-3 else 1.0,
    )
    choice = tuned(tunable(), judge, values=[8.0, 0.0])
    assert math.isnan(choice.trials[0]["odd"])
    assert choice.parameters == {"scale": 0.0}


def test_anything_may_be_tried_where_the_default_does_not_matter():
    choice = tuned(tunable("ties", "scope"), digits.judge(), values=["model", "tensor"])
    assert choice.parameters["scope"] in ("model", "tensor")
    with pytest.raises(
        InvalidParameter, match="stays near the default of 'scope', and that is not"
    ):
        tuned(tunable("ties", "scope"), digits.judge(), values=["model"], rule="one_se")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either values=, what to try, or bounds="),
        ({"values": []}, "either values="),
        ({"values": [1.0], "bounds": (0, 1)}, "either values="),
        ({"bounds": (1.0, 1.0)}, "two finite numbers, the smaller one first. Got 1.0 and 1.0"),
        ({"bounds": (0.0, math.inf)}, "two finite numbers"),
        ({"bounds": (0.0, 1.0), "points": 2}, "at least 3 'points'. Got 2"),
        ({"values": [1.0], "rule": "cv"}, "'best' or 'one_se'. Got 'cv'"),
    ],
)
def test_what_cannot_be_done_is_said(given, said):
    with pytest.raises(InvalidParameter, match=said):
        tuned(tunable(), digits.judge(), **given)


def test_unknown_names_are_said():
    with pytest.raises(InvalidParameter, match="task_arithmetic has no parameter 'alpha' to tune"):
        tuned(tunable(parameter="alpha"), digits.judge(), values=[1.0])
    with pytest.raises(UnknownName, match="Did you mean 'ties'"):
        tuned(tunable("tise"), digits.judge(), values=[1.0])


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_the_verb_hands_out_the_model_that_it_chose(batch_norm):
    models = digits.members(batch_norm)
    members = {name: models[name] for name in ("tuned 0", "tuned 1")}
    validation = digits.splits()["validation"]
    found = alloykit.tune(
        members, "ties", "density", [0.2, 1.0], base=models["start"], validation=validation,
        parameters={"scale": 0.5}, weights={"tuned 0": 1.0, "tuned 1": 0.5}, rule="one_se",
        prefer=0.2,
    )  # fmt: skip
    assert found.choice.parameters["scale"] == 0.5
    judge = digits.judge(batch_norm)
    value = judge.value(found.model.state_dict(), reestimate=False)
    assert value == pytest.approx(found.choice.value)


def test_the_verb_says_what_is_missing():
    models = digits.members()
    states = [models[name].state_dict() for name in ("tuned 0", "tuned 1")]
    validation = digits.splits()["validation"]
    with pytest.raises(MissingInput, match="Tuning runs the models: pass module="):
        alloykit.tune(states, "ties", "density", [0.2], validation=validation)
    with pytest.raises(MissingInput, match="base"):
        alloykit.tune(
            states, "ties", "density", [0.2], validation=validation, module=models["start"]
        )
    with pytest.raises(InvalidParameter, match="either values="):
        alloykit.tune(
            states, "linear", "normalize", [], validation=validation, module=models["start"]
        )
