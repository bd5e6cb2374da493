"""What one simulated client sends after its training."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from alloykit.federation.choosing import as_aggregator
from alloykit.federation.clients import Client, Given, answer, as_delta, mean_loss, started
from alloykit.federation.settings import Federation
from alloykit.federation.update import Update
from alloykit.training.rows import Rows

INPUTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def given(model: nn.Module, method: str = "fedavg", **parameters: float) -> Given:
    names = tuple(model.state_dict())
    return Given(model, names, (), 3, as_aggregator(method, parameters))


def test_an_update_says_who_sends_it_and_what_it_counts():
    model, rows = net(), Rows(INPUTS, LABELS)
    before = copy.deepcopy(model.state_dict())
    settings = Federation(training={"epochs": 2, "batch_size": 20, "momentum": 0.5})
    found = answer(Client("a", rows), given(model, "qfedavg", client_learning_rate=0.05), settings,
                   task="classification")  # fmt: skip
    assert (found.update.client, found.update.num_examples, found.update.round) == ("a", 50, 3)
    # Two epochs of three steps with momentum 1/2: 1 + 1.5 + 1.75 + 1.875 + 1.9375 + 1.96875.
    assert found.update.steps == 10.03125
    with torch.no_grad():
        wanted = F.cross_entropy(model.eval()(INPUTS), LABELS)
    torch.testing.assert_close(torch.tensor(found.update.loss), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert int(found.update.model["1.num_batches_tracked"]) == 6
    assert found.update.control is None


def test_the_loss_before_training_is_of_the_data_as_they_are():
    rows = Rows(INPUTS, LABELS, augment=lambda x: x + torch.randn_like(x))
    state = torch.get_rng_state()
    assert mean_loss(net(), rows, "classification", 16) == mean_loss(
        net(), Rows(INPUTS, LABELS), "classification", 16
    )
    assert torch.equal(state, torch.get_rng_state())


def test_a_delta_and_the_server_it_started_from_make_the_model_again():
    server = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "mask": torch.tensor([True])}
    client = {"w": torch.tensor([1.5, 0.0]), "n": torch.tensor(7), "mask": torch.tensor([True])}
    found = as_delta(Update("a", client, num_examples=4, round=2), server)
    assert found.delta
    assert found.model["w"].tolist() == [0.5, -2.0]
    assert int(found.model["n"]) == 4
    assert (found.num_examples, found.round) == (4, 2)


def test_a_client_starts_from_the_server_and_from_what_it_kept():
    model = net()
    kept = {"1.running_mean": torch.full((4,), 9.0)}
    found = started(model, kept)
    assert found[1].running_mean.tolist() == [9.0] * 4
    assert torch.equal(found[0].weight, model[0].weight)
    assert found[0].weight is not model[0].weight
    assert model[1].running_mean.tolist() == [0.0] * 4
