"""SCAFFOLD, the server's part."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.scaffold import scaffold
from alloykit.federation.update import Update


def test_models_and_controls_by_hand():
    server = {"w": torch.tensor([1.0]), "bn.running_var": torch.tensor([1.0])}
    updates = [
        Update(
            name,
            {"w": torch.tensor([x]), "bn.running_var": torch.tensor([v])},
            num_examples=n,
            control={"w": torch.tensor([c])},
        )
        for name, x, v, n, c in (("a", 3.0, 0.5, 1, 2.0), ("b", 5.0, 0.1, 99, 4.0))
    ]
    done = aggregate_updates(server, updates, scaffold(num_clients=10, server_learning_rate=2.0))
    # Clients count the same: 1 + 2 · (2 + 4)/2; statistics are averaged, not moved twice as far.
    assert done.tensors["w"].item() == 7.0
    assert done.tensors["bn.running_var"].item() == pytest.approx(0.3)
    # 0 + (2 + 4)/10
    assert done.state.tensors["control"]["w"].item() == pytest.approx(0.6)
    again = aggregate_updates(server, updates, scaffold(num_clients=10), state=done.state)
    assert again.state.tensors["control"]["w"].item() == pytest.approx(1.2)


def test_more_clients_than_there_are():
    with pytest.raises(InvalidParameter, match="told of 2 clients in all, and 3 count"):
        scaffold(num_clients=2).control(3)
    with pytest.raises(InvalidParameter, match="'num_clients' parameter of scaffold"):
        scaffold(num_clients=0)
