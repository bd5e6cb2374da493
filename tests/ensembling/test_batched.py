from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.ensembling.average import average
from alloykit.ensembling.batched import batched_forward, loop_forward
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.weighted import weighted

INPUTS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed, slope=0.1):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope), nn.Flatten(), nn.Linear(144, 3)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def test_one_call_gives_what_the_loop_gives():
    members = [network(seed) for seed in range(3)]
    run, loop = batched_forward(members), loop_forward(members)
    for _ in range(2):
        for one, other in zip(run(INPUTS), loop(INPUTS), strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_after_the_first_batch_the_members_are_not_called_one_by_one(monkeypatch):
    members = [network(seed) for seed in range(3)]
    run = batched_forward(members)
    run(INPUTS)
    calls = []
    members[1].register_forward_hook(lambda *_: calls.append(1))
    run(INPUTS)
    assert calls == []


def test_members_that_differ_in_a_python_number_fall_back_to_the_loop():
    members = [network(0, slope=0.1), network(1, slope=0.9)]
    run = batched_forward(members)
    with pytest.warns(UserWarning, match="run one by one, not batched: the outputs of member 2"):
        first = run(INPUTS)
    for outputs in (first, run(INPUTS)):
        for output, member in zip(outputs, members, strict=True):
            assert torch.equal(output, member(INPUTS))


def test_members_that_cannot_be_stacked_fall_back_to_the_loop():
    members = [network(0), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()]
    with pytest.warns(UserWarning, match="not batched: member 2 has another class"):
        run = batched_forward(members)
    assert torch.equal(run(INPUTS)[1], members[1](INPUTS))


class Branching(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs if outputs.sum() > 0 else -outputs


def test_members_with_a_branch_on_the_data_fall_back_to_the_loop():
    members = [Branching(0).eval(), Branching(1).eval()]
    run = batched_forward(members)
    inputs = torch.randn(4, 3)
    with pytest.warns(UserWarning, match="cannot be run in one call"):
        assert torch.equal(run(inputs)[0], members[0](inputs))


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, first, second):
        return SimpleNamespace(logits=self.layer(first * second))


def test_keywords_and_objects_with_logits_are_batched_too():
    members = [Keywords().eval(), Keywords().eval()]
    run = batched_forward(members)
    inputs = {"first": torch.randn(4, 3), "second": torch.randn(4, 3)}
    run(**inputs)
    assert_close(run(**inputs)[1], members[1](**inputs).logits)


def test_a_batched_ensemble_equals_the_loop_and_follows_new_parameters():
    loop = Ensemble([network(0), network(1)], average())
    batched = Ensemble([network(0), network(1)], average(), batched=True)
    for _ in range(2):
        assert_close(batched(INPUTS), loop(INPUTS), rtol=1e-5, atol=1e-6)
    other = Ensemble([network(5), network(6)], average())
    batched.load_state_dict(other.state_dict())
    for _ in range(2):
        assert_close(batched(INPUTS), other(INPUTS), rtol=1e-5, atol=1e-6)
    batched.double()
    assert_close(batched(INPUTS.double()).float(), other(INPUTS), rtol=1e-5, atol=1e-6)


def test_members_of_weight_zero_are_not_batched():
    odd = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    ensemble = Ensemble([network(0), odd, network(1)], weighted(weights=[1, 0, 1]), batched=True)
    expected = Ensemble([network(0), network(1)], average())(INPUTS)
    assert_close(ensemble(INPUTS), expected)
    assert_close(ensemble(INPUTS), expected)
