from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alloykit.errors import DataError, InvalidParameter
from alloykit.training.averages import StochasticWeightAverage
from alloykit.training.fitting import fit


def data(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


def net(seed: int = 0, *layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), *layers, nn.ReLU(), nn.Linear(8, 2))


def test_it_learns_and_says_how():
    inputs, targets = data()
    model = net()
    history = fit(model, inputs, targets, epochs=30, batch_size=8, learning_rate=1e-2)
    assert len(history) == 30
    assert history[-1] < 0.3 * history[0]
    assert (model(inputs).argmax(1) == targets).float().mean() > 0.95
    assert not model.training


def test_it_learns_values_too():
    inputs, _ = data()
    values = inputs[:, :2] * 2
    history = fit(
        net(), inputs, values, task="regression", epochs=40, batch_size=8, learning_rate=1e-2
    )
    assert history[-1] < 0.5 * history[0]


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def weights(seed: int) -> torch.Tensor:
        model = net()
        torch.manual_seed(seed * 17)
        fit(model, *data(), epochs=2, batch_size=8, seed=seed)
        return model[0].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    model = nn.Linear(3, 2)
    torch.set_rng_state(before)
    fit(model, *data(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_callbacks_come_after_each_step_and_each_epoch():
    steps, epochs = [], []
    average = StochasticWeightAverage(model := net())
    history = fit(
        model, *data(20), epochs=2, batch_size=8,
        after_step=lambda: steps.append(average.update()),
        after_epoch=lambda *told: epochs.append(told),
    )  # fmt: skip
    assert len(steps) == average.updates == 6
    assert epochs == [(1, history[0]), (2, history[1])]


@pytest.mark.parametrize("count", [17, 9, 1])
def test_batch_norm_gets_no_batch_of_one(count):
    model = net(0, nn.BatchNorm1d(8))
    if count == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            fit(model, *data(count), epochs=1, batch_size=8)
        return
    steps = []
    fit(model, *data(count), epochs=1, batch_size=8, after_step=lambda: steps.append(1))
    assert len(steps) == count // 8


def test_every_example_counts_once_in_the_loss():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    assert fit(model, *data(17), epochs=1, batch_size=8, learning_rate=1e-30) == pytest.approx(
        [math.log(2)]
    )


def test_a_loss_that_is_not_finite_is_said_with_its_place():
    inputs, targets = data()
    inputs[3] = math.inf
    with pytest.raises(
        DataError, match=r"The loss became nan in epoch 1 of 10, step \d\. Lower lea"
    ):
        fit(net(), inputs, targets, batch_size=8)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [(torch.zeros(0, 3), torch.zeros(0).long()), (torch.zeros(3, 3), torch.zeros(5).long())],
)
def test_examples_and_targets_must_fit(inputs, targets):
    with pytest.raises(DataError, match=f"Got {len(inputs)} inputs and {len(targets)} targets"):
        fit(net(), inputs, targets)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}],
)
def test_numbers_outside_their_range(options):
    with pytest.raises(InvalidParameter, match=f"'{next(iter(options))}' must be a"):
        fit(net(), *data(), **options)
