from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.ensembling.average import average
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.per_class import per_class
from alloykit.ensembling.vote import vote
from alloykit.ensembling.weighted import weighted
from alloykit.errors import DataError, InvalidParameter, InvalidWeights, MissingInput
from alloykit.evaluation.predicting import predict

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def linear(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Linear(4, classes)


def with_batch_norm(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.model(*args, **kwargs)


class Broken(nn.Module):
    def forward(self, inputs):
        raise AssertionError("a member of weight zero was run")


def test_logits_members_give_log_probabilities_of_the_mean():
    members = [linear(0), linear(1)]
    ensemble = Ensemble(members, average())
    expected = (members[0](INPUTS).softmax(1) + members[1](INPUTS).softmax(1)) / 2
    assert_close(ensemble(INPUTS).exp(), expected)
    assert ensemble.kinds == ("logits", "logits")
    assert_close(ensemble.predict_proba(INPUTS), expected)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    assert_close(
        nn.functional.cross_entropy(ensemble(INPUTS), targets),
        -expected[torch.arange(6), targets].log().mean(),
    )


def test_probabilities_members_give_probabilities_without_a_second_softmax():
    members = [nn.Sequential(linear(i), nn.Softmax(1)) for i in range(2)]
    ensemble = Ensemble(members, average())
    expected = (members[0](INPUTS) + members[1](INPUTS)) / 2
    assert_close(ensemble(INPUTS), expected)
    assert_close(ensemble.predict_proba(INPUTS), expected)
    assert ensemble.kinds == ("probabilities", "probabilities")
    mixed = Ensemble([linear(0), members[1]], average())
    assert_close(mixed(INPUTS).exp(), expected)
    assert_close(mixed.predict_proba(INPUTS), expected)


def test_regression_and_single_output_members():
    members = [linear(i, classes=2) for i in range(2)]
    ensemble = Ensemble(members, average("values"), task="regression")
    assert_close(ensemble(INPUTS), (members[0](INPUTS) + members[1](INPUTS)) / 2)
    with pytest.raises(InvalidParameter, match="no probabilities"):
        ensemble.predict_proba(INPUTS)
    binary = [linear(i, classes=1) for i in range(2)]
    second = Ensemble(binary, average())(INPUTS).exp()[:, 1]
    expected = sum(member(INPUTS).sigmoid()[:, 0] for member in binary) / 2
    assert_close(second, expected)


def test_tokens_keep_their_positions():
    members = [linear(i, classes=5) for i in range(2)]
    inputs = torch.randn(2, 7, 4)
    ensemble = Ensemble(members, average(), task="tokens")
    expected = sum(member(inputs).softmax(-1) for member in members) / 2
    assert ensemble(inputs).shape == (2, 7, 5)
    assert_close(ensemble(inputs).exp(), expected)


def test_members_are_called_with_tuples_and_keywords_and_may_return_objects():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear(3)

        def forward(self, first, second):
            return SimpleNamespace(logits=self.layer(first + second))

    class Mapping(Pair):
        def forward(self, first, second):
            return {"logits": self.layer(first + second), "loss": None}

    ensemble = Ensemble([Pair(), Mapping()], average())
    expected = linear(3)(2 * INPUTS).log_softmax(1)
    assert_close(ensemble(INPUTS, INPUTS), expected)
    assert_close(ensemble(first=INPUTS, second=INPUTS), expected)
    with pytest.raises(DataError, match="gives a list, which has no logits"):
        Ensemble([type("Lists", (nn.Module,), {"forward": lambda s, x: [x]})()], average())(INPUTS)


def test_an_ensemble_is_predicted_like_a_member_and_can_be_a_member():
    inner = Ensemble([linear(0), linear(1)], average())
    split = as_examples((INPUTS, torch.zeros(6, dtype=torch.long)), "test", batch_size=4)
    assert_close(predict(inner, split), inner(INPUTS))
    outer = Ensemble([inner, linear(2)], average())
    expected = (inner(INPUTS).exp() + linear(2)(INPUTS).softmax(1)) / 2
    assert_close(outer(INPUTS).exp(), expected)


def test_members_are_frozen_for_ever():
    members = [with_batch_norm(i) for i in range(2)]
    ensemble = Ensemble(members, average())
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    ensemble.train()
    assert ensemble.training
    assert not any(module.training for module in ensemble.members.modules())
    first, second = ensemble(INPUTS), ensemble(INPUTS)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name])
    nn.Sequential(ensemble, nn.Linear(3, 2)).train()
    assert not any(module.training for module in ensemble.members.modules())
    assert not ensemble.eval().training


def test_members_of_weight_zero_are_not_run():
    counted = Counting(linear(0))
    ensemble = Ensemble({"a": Broken(), "b": counted}, weighted(weights=[0, 2]))
    assert_close(ensemble(INPUTS), linear(0)(INPUTS).log_softmax(1))
    assert counted.calls == 1
    assert ensemble.used == (1,)
    smaller = ensemble.without_unused()
    assert smaller.names == ("b",)
    assert_close(smaller(INPUTS), ensemble(INPUTS))


def test_pooling_stays_in_float32_under_autocast_and_for_half_members():
    members = [linear(0), linear(1)]
    ensemble = Ensemble(members, weighted(weights=[0.3, 0.7]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ensemble(INPUTS)
        logits = [member(INPUTS) for member in members]
    assert logits[0].dtype == torch.bfloat16
    assert result.dtype == torch.float32
    # A rule with a product of matrices, which autocast would compute in bfloat16.
    product = replace(average(), combine=lambda stack, _: (torch.eye(3) @ stack.mean(0).mT).mT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        precise = Ensemble(members, product)(INPUTS)
    assert precise.dtype == torch.float32
    assert_close(precise, torch.stack(logits).float().log_softmax(-1).mean(0))
    expected = 0.3 * logits[0].float().softmax(1) + 0.7 * logits[1].float().softmax(1)
    assert_close(result.exp(), expected)
    halved = ensemble.bfloat16()
    assert halved.state["weights"].dtype == torch.float32
    assert halved.weights == pytest.approx((0.3, 0.7))
    assert halved(INPUTS.bfloat16()).dtype == torch.float32


def test_the_state_travels_in_the_state_dict():
    fitted = Ensemble([linear(0), linear(1)], weighted("f1"), {"weights": torch.tensor([1.0, 0.0])})
    other = Ensemble([linear(5), linear(6)], weighted("f1"), {"weights": torch.tensor([0.5, 0.5])})
    assert other.used == (0, 1)
    assert "rule_weights" in fitted.state_dict()
    other.load_state_dict(fitted.state_dict())
    assert other.used == (0,)
    assert_close(other(INPUTS), fitted(INPUTS))


def test_a_deep_copy_has_members_of_its_own():
    ensemble = Ensemble([linear(0), linear(1)], average())
    before = ensemble(INPUTS)
    twin = copy.deepcopy(ensemble)
    with torch.no_grad():
        twin.members[0].weight.zero_()
    assert not torch.equal(twin(INPUTS), before)
    assert torch.equal(ensemble(INPUTS), before)


def test_the_repr_shows_the_rule_and_the_weights():
    text = repr(Ensemble({"a": linear(), "b": linear()}, weighted(weights=[1, 3])))
    assert "task=classification, rule=weighted(weights=[1, 3], power=1.0), a=0.25, b=0.75" in text


def test_members_with_other_classes_are_listed():
    ensemble = Ensemble({"a": linear(), "wide": linear(classes=5), "c": linear()}, average())
    with pytest.raises(DataError) as caught:
        ensemble(INPUTS)
    text = str(caught.value)
    assert text.startswith("The members' outputs differ in shape:\n")
    assert "  a: [6, 3]\n  wide: [6, 5]\n  c: [6, 3]" in text


def test_what_cannot_be_an_ensemble_is_refused():
    with pytest.raises(MissingInput, match="at least one member"):
        Ensemble([], average())
    with pytest.raises(MissingInput, match=r"pass state=rule\.fit"):
        Ensemble([linear()], per_class())
    with pytest.raises(InvalidParameter, match=r"vote.* not regression"):
        Ensemble([linear()], vote(), task="regression")
    with pytest.raises(InvalidWeights, match="weights for 2 members, and there are 1"):
        Ensemble([linear()], weighted("f1"), {"weights": torch.ones(2)})
    with pytest.raises(InvalidWeights, match="3 weights for 1 models"):
        Ensemble([linear()], weighted(weights=[1, 1, 1]))
    with pytest.raises(InvalidParameter, match="2 kinds were given for 1 members"):
        Ensemble([linear()], average(), kinds=["logits"] * 2)
    with pytest.raises(DataError, match="values where classes are needed"):
        Ensemble([linear()], average(), kinds=["values"])(INPUTS)
