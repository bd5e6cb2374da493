"""Krum: the client that is closest to its neighbours."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.krum import krum
from alloykit.federation.update import Update


def clients(values):
    return [Update(name, {"w": torch.tensor([x, 0.0])}) for name, x in values.items()]


def test_it_is_one_of_the_clients_bit_for_bit():
    sent = clients({"a": 0.1, "b": 0.3, "c": 0.35, "d": 0.5, "e": -70.0})
    done = aggregate_updates(None, sent, krum(num_malicious=1))
    # Two nearest: a .04 + .0625, b .0025 + .04, c .0025 + .0225, d .0225 + .04
    assert torch.equal(done.tensors["w"], torch.tensor([0.35, 0.0]))
    assert [each.coefficient for each in done.record.counted] == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_small_changes_of_a_large_model_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    server = {"w": torch.randn(200_000, generator=generator) * 0.05}
    steps = {"a": 1.0, "b": 1.02, "c": 1.04, "d": 3.0, "e": 5.0}
    way = torch.randn(200_000, generator=generator) * 1e-5
    sent = [Update(name, {"w": server["w"] + way * times}) for name, times in steps.items()]
    done = aggregate_updates(server, sent, krum(num_malicious=1))
    assert [each.client for each in done.record.counted if each.coefficient] == ["b"]


def test_too_few_clients_end_the_round_with_the_numbers():
    with pytest.raises(
        InvalidParameter,
        match=r"num_malicious=1 needs at least 5 clients \(2 · 1 \+ 3\), and 4 count",
    ):
        aggregate_updates(None, clients({"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}), krum(1))


def test_wrong_parameters():
    with pytest.raises(InvalidParameter, match="'num_malicious' parameter of krum must be a whole"):
        krum(num_malicious=1.5)
