from __future__ import annotations

import json
import math

import pytest
import torch

import alloykit
import digits_samples as digits
from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter
from alloykit.soups.greedy import greedy

NORMS = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
METRICS = pytest.mark.parametrize("measure", ["accuracy", "log_loss"])


@NORMS
@METRICS
def test_it_is_never_worse_on_validation_than_the_best_member(batch_norm, measure):
    higher = measure == "accuracy"
    choice = greedy()(digits.checkpoints(batch_norm), digits.judge(batch_norm, measure))
    singles = digits.single_values(batch_norm, measure)
    assert choice.value >= max(singles) if higher else choice.value <= min(singles)
    assert choice.weights[-1] == 0.0, "the bad member stayed"


@NORMS
def test_the_model_handed_out_scores_what_was_said(batch_norm):
    models = digits.members(batch_norm)
    validation = digits.splits()["validation"]
    for subset in (models, {name: models[name] for name in ("start", "bad")}):
        result = alloykit.soup(subset, "greedy", validation=validation)
        with torch.no_grad():
            hits = (result.model(validation[0]).argmax(1) == validation[1]).double().mean()
        assert hits.item() == pytest.approx(result.choice.value)
    assert result.choice.mixes is False
    assert torch.equal(result.model[0].weight, models["start"][0].weight)


@NORMS
def test_members_are_not_changed(batch_norm):
    models = digits.members(batch_norm)
    before = [content_digest(MemoryCheckpoint(net.state_dict(), "x")) for net in models.values()]
    modes = [net.training for net in models.values()]
    alloykit.soup(models, "greedy", validation=digits.splits()["validation"])
    after = [content_digest(MemoryCheckpoint(net.state_dict(), "x")) for net in models.values()]
    assert after == before
    assert [net.training for net in models.values()] == modes


def test_every_trial_is_recorded_for_json():
    members = digits.checkpoints()
    choice = greedy()(members, digits.judge())
    assert len(choice.trials) == len(members)
    kept = [trial for trial in choice.trials if trial["kept"]]
    assert choice.trials[0]["kept"]
    assert [trial["accuracy"] for trial in kept] == sorted(trial["accuracy"] for trial in kept)
    assert choice.value == kept[-1]["accuracy"]
    chosen = {m.id for m, w in zip(members, choice.weights, strict=True) if w}
    assert set(kept[-1]["members"]) == chosen
    assert math.fsum(choice.weights) == pytest.approx(1.0)
    assert json.loads(json.dumps(choice.trials)) == list(choice.trials)


def test_the_order_of_the_members_does_not_matter():
    members = digits.checkpoints()
    first = greedy()(members, digits.judge())
    second = greedy()(members[::-1], digits.judge())
    assert first.value == second.value
    assert first.weights == second.weights[::-1]


def test_a_tolerance_keeps_members_that_cost_little():
    strict = greedy()(digits.checkpoints(), digits.judge())
    lax = greedy(tolerance=1.0)(digits.checkpoints(), digits.judge())
    assert lax.weights == (0.2,) * 5
    assert sum(w > 0 for w in strict.weights) < 5


def test_a_single_member_is_its_own_soup():
    members = digits.checkpoints()[:1]
    choice = greedy()(members, digits.judge())
    assert choice.weights == (1.0,)
    assert not choice.mixes


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_a_negative_tolerance_is_refused(tolerance):
    with pytest.raises(InvalidParameter, match="'tolerance' of greedy must be at least 0"):
        greedy(tolerance=tolerance)
