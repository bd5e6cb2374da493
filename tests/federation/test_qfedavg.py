"""q-FedAvg: clients that are badly served by the model count more."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report
from alloykit.federation.qfedavg import qfedavg
from alloykit.federation.update import Update


def test_by_hand():
    # L = 2, q = 2, F = 1 and 3, |delta| = 5 and 1, in two tensors.
    server = {"w": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    near = {
        "w": torch.tensor([3.0, 0.0], dtype=torch.float64),
        "b": torch.tensor([4.0], dtype=torch.float64),
    }
    far = {
        "w": torch.tensor([0.0, 1.0], dtype=torch.float64),
        "b": torch.tensor([0.0], dtype=torch.float64),
    }
    updates = [Update("a", near, loss=1.0), Update("b", far, loss=3.0)]
    done = aggregate_updates(server, updates, qfedavg(client_learning_rate=0.5, q=2.0))
    h = (2 * 1 * 4 * 25 + 2 * 1) + (2 * 3 * 4 * 1 + 2 * 9)
    assert done.tensors["w"].tolist() == pytest.approx([2 * 1 * 3 / h, 2 * 9 * 1 / h], rel=1e-9)
    assert done.tensors["b"].item() == pytest.approx(2 * 1 * 4 / h, rel=1e-9)


def test_with_q_zero_it_is_the_plain_mean():
    reports = [Report("a", 5, loss=0.0, norm=2.0), Report("b", 1, loss=7.0, norm=0.0)]
    assert qfedavg(0.1, q=0.0).rule(None).coefficients(reports) == pytest.approx([0.5, 0.5])


def test_losses_of_zero_give_finite_numbers():
    reports = [Report("a", loss=0.0, norm=0.0), Report("b", loss=0.0, norm=1.0)]
    found = qfedavg(0.1, q=0.5).rule(None).coefficients(reports)
    assert all(0.0 <= each <= 1.0 for each in found)


def test_whole_numbers_do_not_disturb_it():
    server = {"w": torch.zeros(1), "n": torch.tensor(4)}
    updates = [Update(name, {"w": torch.ones(1), "n": torch.tensor(4)}, loss=1.0) for name in "ab"]
    done = aggregate_updates(server, updates, qfedavg(0.1))
    assert done.tensors["n"].item() == 4
    assert done.tensors["n"].dtype == torch.int64


def test_what_is_missing_or_wrong():
    with pytest.raises(MissingInput, match="needs the loss of every client, and 'a'"):
        qfedavg(0.1).rule(None).coefficients([Report("a", norm=1.0)])
    with pytest.raises(InvalidParameter, match="'q' parameter of qfedavg must be"):
        qfedavg(0.1, q=-1)
    with pytest.raises(InvalidParameter, match="'client_learning_rate'"):
        qfedavg(0.0)
