"""FedBuff: clients that come late count less."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report, ServerState
from alloykit.federation.fedbuff import fedbuff
from alloykit.federation.update import Update


def test_by_hand():
    # s = 1 and 1/√(1 + 3) = 1/2: new = 1 + 0.5/2 · (4 + 1/2 · 6)
    server = {"w": torch.ones(1, dtype=torch.float64)}
    updates = [
        Update("a", {"w": server["w"] + 4.0}, round=8),
        Update("b", {"w": torch.tensor([6.0], dtype=torch.float64)}, round=5, delta=True),
    ]
    made = fedbuff(server_learning_rate=0.5)
    done = aggregate_updates(server, updates, made, state=ServerState(round=7))
    assert done.record.left_out == ()
    assert done.tensors["w"].item() == pytest.approx(2.75, rel=1e-14)


def test_exponent_zero_is_the_plain_mean():
    reports = [Report("a"), Report("b", staleness=9)]
    assert fedbuff(exponent=0.0).rule(None).coefficients(reports) == [0.5, 0.5]
    assert fedbuff(exponent=1.0).rule(None).coefficients(reports) == [0.5, 0.05]


def test_wrong_parameters():
    with pytest.raises(InvalidParameter, match="'exponent' parameter of fedbuff"):
        fedbuff(exponent=-1)
