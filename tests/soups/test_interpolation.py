from __future__ import annotations

import pytest
import torch

import alloykit
import digits_samples as digits
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.soups.interpolation import interpolation

NORMS = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])


def ends(batch_norm: bool, tuned: str = "tuned 0"):
    models = digits.members(batch_norm)
    return [MemoryCheckpoint(models[name].state_dict(), id=name) for name in ("start", tuned)]


@NORMS
@pytest.mark.parametrize("measure", ["accuracy", "log_loss"])
@pytest.mark.parametrize("tuned", ["tuned 0", "bad"])
def test_it_is_never_worse_than_either_end_as_it_is(batch_norm, measure, tuned):
    base, member = ends(batch_norm, tuned)
    choice = interpolation()([member], digits.judge(batch_norm, measure), base)
    names = list(digits.members(batch_norm))
    singles = digits.single_values(batch_norm, measure)
    both = [singles[names.index(name)] for name in ("start", tuned)]
    assert choice.value >= max(both) if measure == "accuracy" else choice.value <= min(both)
    assert [trial["alpha"] for trial in choice.trials] == [i / 10 for i in range(11)]
    assert [choice.trials[0][measure], choice.trials[-1][measure]] == both


def test_the_soup_hands_out_the_point_that_it_chose():
    models = digits.members()
    result = alloykit.soup(
        [models["tuned 0"]], "interpolation", base=models["start"],
        validation=digits.splits()["validation"], parameters={"points": 5},
    )  # fmt: skip
    alpha = result.choice.parameters["alpha"]
    expected = alloykit.interpolate(models["start"], models["tuned 0"], alpha)
    assert torch.equal(result.model[0].weight, expected[0].weight)


def test_ties_go_to_the_larger_alpha():
    base, _ = ends(False)
    choice = interpolation(points=3)(
        [MemoryCheckpoint(base._tensors, id="m")], digits.judge(), base
    )
    assert choice.parameters == {"alpha": 1.0}
    assert not choice.mixes


@pytest.mark.parametrize("points", [1, 0, -3])
def test_two_points_at_least(points):
    with pytest.raises(InvalidParameter, match="'points' of interpolation must be at least 2"):
        interpolation(points=points)


def test_without_a_base_or_with_two_members_it_says_so():
    base, member = ends(False)
    with pytest.raises(MissingInput, match="pass base="):
        interpolation()([member], digits.judge())
    with pytest.raises(MissingInput, match="exactly 1 model; 2 were given"):
        interpolation()([member, base], digits.judge(), base)
