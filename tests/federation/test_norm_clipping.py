"""Norm clipping: no client moves the model farther than a given length."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.clipping import kept_fraction
from alloykit.federation.contract import Report
from alloykit.federation.fedavg import fedavg
from alloykit.federation.norm_clipping import norm_clipping
from alloykit.federation.update import Update

SERVER = {
    "w": torch.tensor([1.0, 1.0], dtype=torch.float64),
    "b": torch.zeros(1, dtype=torch.float64),
}


def sent(*changes):
    return [
        Update(
            name,
            {"w": SERVER["w"] + torch.tensor(w, dtype=torch.float64), "b": SERVER["b"] + b},
            num_examples=n,
        )
        for name, w, b, n in changes
    ]


def test_by_hand_over_all_tensors_together():
    # Norms 13 and 0.5; C = 2.6: 1/4 · (3, 4)·0.2 and 3/4 · (0.3, 0.4)
    updates = sent(("a", [3.0, 4.0], 12.0, 10), ("b", [0.3, 0.4], 0.0, 30))
    done = aggregate_updates(SERVER, updates, norm_clipping(max_norm=2.6))
    assert done.tensors["w"].tolist() == pytest.approx([1 + 0.15 + 0.225, 1 + 0.2 + 0.3])
    assert done.tensors["b"].item() == pytest.approx(0.6)
    assert [each.norm for each in done.record.counted] == pytest.approx([13.0, 0.5])


def test_infinity_is_fedavg_and_nothing_is_nothing():
    updates = sent(("a", [3.0, 4.0], 12.0, 10), ("b", [0.0, 0.0], 0.0, 30))
    ours = aggregate_updates(SERVER, updates, norm_clipping(max_norm=math.inf)).tensors
    plain = aggregate_updates(SERVER, updates, fedavg()).tensors
    assert all(torch.equal(ours[name], plain[name]) for name in SERVER)


def test_fractions():
    assert kept_fraction(0.0, math.inf) == kept_fraction(0.0, 1.0) == kept_fraction(1.0, 1.0) == 1.0
    assert kept_fraction(1e300, 1.0) == 1e-300


def test_what_is_missing_or_wrong():
    with pytest.raises(MissingInput, match="norm_clipping needs the norm of every client, and 'a'"):
        norm_clipping(1.0).rule(None).coefficients([Report("a")])
    with pytest.raises(InvalidParameter, match="'max_norm' parameter of norm_clipping"):
        norm_clipping(0.0)
