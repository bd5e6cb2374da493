from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import alloykit
import digits_samples as digits
from alloykit.comparison.diagnosis import barrier_height
from alloykit.errors import MissingInput
from alloykit.training.fitting import fit


def trained(seed: int, batch_norm: bool = False, epochs: int = 40) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, 32), *([nn.BatchNorm1d(32)] if batch_norm else []), nn.ReLU(),
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    fit(net, *digits.splits()["train"], epochs=epochs, batch_size=32, learning_rate=1e-2)
    return net


def tuned(start: nn.Module, seed: int) -> nn.Module:
    net = copy.deepcopy(start)
    fit(net, *digits.splits()["train"], epochs=2, batch_size=32, learning_rate=1e-3, seed=seed)
    return net


@pytest.fixture(scope="module")
def start() -> nn.Module:
    return trained(0)


def diagnosed(members, **options):
    return alloykit.diagnose(members, validation=digits.splits()["validation"], **options)


def test_models_from_different_starts_are_not_in_one_basin(start):
    (barrier,) = diagnosed({"one": start, "other": trained(1)})
    assert barrier.verdict.startswith("Not in one basin")
    assert barrier_height(barrier.losses) > 0.3
    assert len(barrier.alphas) == len(barrier.losses) == 11


def test_short_fine_tunes_of_one_start_are_in_one_basin(start):
    (barrier,) = diagnosed([tuned(start, 1), tuned(start, 2)])
    assert barrier.verdict.startswith("One basin")
    assert barrier.losses_reestimated is None


def test_the_ends_of_the_line_are_the_members(start):
    other = tuned(start, 1)
    (barrier,) = diagnosed({"b": start, "a": other})
    assert (barrier.first, barrier.second) == ("b", "a")
    inputs, targets = digits.splits()["validation"]
    for net, loss in ((start, barrier.losses[0]), (other, barrier.losses[-1])):
        with torch.no_grad():
            expected = nn.functional.cross_entropy(net(inputs), targets).item()
        assert loss == pytest.approx(expected, rel=1e-5)


def test_a_shifted_batch_norm_needs_nothing_but_re_estimation():
    net = trained(0, batch_norm=True)
    other = copy.deepcopy(net)
    with torch.no_grad():
        # The same function, with the units of the first layer in another place of their range.
        other[0].weight.mul_(-1)
        other[0].bias.mul_(-1)
        other[1].running_mean.mul_(-1)
        other[1].weight.mul_(-1)
    inputs, _ = digits.splits()["validation"]
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), other(inputs), rtol=1e-3, atol=1e-4)
    (flipped,) = diagnosed([net, other])
    assert flipped.verdict.startswith("Not in one basin")

    grown = copy.deepcopy(net)
    with torch.no_grad():
        grown[0].weight.mul_(30)
        grown[0].bias.mul_(30)
        grown[1].running_mean.mul_(30)
        # Statistics of the smaller model's range, as after a change of the inputs.
        grown[1].running_var.mul_(900)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs), grown(inputs), rtol=1e-3, atol=1e-3)
    (barrier,) = diagnosed([net, grown])
    assert barrier.losses_reestimated is not None
    assert barrier_height(barrier.losses_reestimated) < 0.1 * barrier_height(barrier.losses)
    assert barrier.verdict.startswith("Only the BatchNorm statistics stand in the way")


def test_members_are_not_changed_and_keep_their_modes():
    nets = [trained(seed, batch_norm=True, epochs=1).train() for seed in range(2)]
    before = [{n: t.clone() for n, t in net.state_dict().items()} for net in nets]
    diagnosed(nets)
    for net, state in zip(nets, before, strict=True):
        assert net.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_every_pair_of_the_same_architecture_is_joined(start):
    members = {"a": start, "b": tuned(start, 1), "c": tuned(start, 2), "other": nn.Linear(64, 10)}
    barriers = diagnosed(members)
    assert [(b.first, b.second) for b in barriers] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_regression_has_a_loss_and_no_errors():
    inputs = torch.linspace(-1, 1, 40)[:, None]
    nets = [nn.Linear(1, 1) for _ in range(2)]
    (barrier,) = alloykit.diagnose(nets, validation=(inputs, inputs), task="regression")
    assert barrier.errors is None
    assert barrier.verdict.startswith("One basin")  # a linear model's loss is convex


@pytest.mark.parametrize("count", [0, 1])
def test_two_models_at_least(start, count):
    with pytest.raises(MissingInput, match="at least two models"):
        diagnosed([start] * count)


@pytest.mark.parametrize(
    ("values", "height"), [([1.0, 4.0, 2.0], 2.5), ([1.0, 1.0], 0.0), ([2.0, 0.0, 2.0], 0.0)]
)
def test_the_height_of_a_barrier(values, height):
    assert barrier_height(values) == height
