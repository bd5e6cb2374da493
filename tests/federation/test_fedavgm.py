"""FedAvgM: momentum on the server."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import ServerState
from alloykit.federation.fedavgm import fedavgm
from alloykit.federation.update import Update


def test_three_rounds_by_hand():
    server, state = {"w": torch.zeros(1, dtype=torch.float64)}, ServerState()
    made = fedavgm(server_learning_rate=0.5, server_momentum=0.5)
    seen = []
    for goal in (1.0, 1.0, 0.0):
        updates = [
            Update("a", {"w": torch.tensor([goal - 1.0], dtype=torch.float64)}, num_examples=1),
            Update("b", {"w": torch.tensor([goal + 1.0], dtype=torch.float64)}, num_examples=1),
        ]
        done = aggregate_updates(server, updates, made, state=state)
        server, state = done.tensors, done.state
        seen.append((server["w"].item(), state.tensors["first_moment"]["w"].item()))
    # m = 1, then 0.5 + (1 - 0.5), then 0.5 + (0 - 1); x = 0.5, 1.0, 0.75
    assert seen == [(0.5, 1.0), (1.0, 1.0), (0.75, -0.5)]
    assert state.round == 3


def test_without_momentum_and_with_rate_one_it_is_fedavg_and_keeps_nothing():
    server = {"w": torch.tensor([3.0, 4.0])}
    updates = [
        Update("a", {"w": torch.tensor([1.0, 0.0])}),
        Update("b", {"w": torch.tensor([2.0, 8.0])}),
    ]
    done = aggregate_updates(server, updates, fedavgm(server_momentum=0.0))
    assert done.tensors["w"].tolist() == [1.5, 4.0]
    assert done.state.tensors == {}


def test_all_wrong_parameters_are_named():
    with pytest.raises(InvalidParameter) as caught:
        fedavgm(server_learning_rate=0, server_momentum=1)
    assert str(caught.value) == (
        "These parameters of fedavgm cannot be used:\n"
        "  'server_learning_rate' must be a finite number above 0. Got 0.\n"
        "  'server_momentum' must be a number, at least 0 and below 1. Got 1."
    )
