"""Bulyan: clients chosen by Krum, then the mean of the values nearest to their median."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.bulyan import bulyan, mean_near_median
from alloykit.federation.update import Update


def plain(column, kept: int) -> float:
    """The mean of the nearest values; of two equally far the smaller one."""
    median = float(np.median(column))
    return float(np.mean(sorted(column, key=lambda x: (abs(x - median), x))[:kept]))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.data())
def test_the_values_nearest_to_the_median(column, data):
    kept = data.draw(st.integers(max(1, len(column) - 6), len(column)))
    rows = [torch.tensor([float(x)], dtype=torch.float64) for x in sorted(column)]
    assert mean_near_median(rows, kept).item() == pytest.approx(plain(column, kept), abs=1e-12)


def test_an_attack_on_few_elements_is_cut_off():
    generator = torch.Generator().manual_seed(4)
    honest = [torch.randn(500, generator=generator) * 0.1 for _ in range(9)]
    hidden = [each.clone() for each in honest[:2]]
    for each in hidden:
        each[0] = 1.5  # As far from the others as they are from each other.
    sent = [Update(f"c{i:02}", {"w": w}) for i, w in enumerate([*honest, *hidden])]
    done = aggregate_updates(None, sent, bulyan(num_malicious=2))
    assert abs(done.tensors["w"][0].item()) < 0.3
    assert done.tensors["w"].dtype == torch.float32


def test_flowers_choice_at_once_differs():
    values = {"a": 6.0, "b": 2.0, "c": 0.0, "d": 0.0, "e": 7.0, "f": 8.0, "g": 5.0}
    sent = [Update(name, {"w": torch.tensor([x])}) for name, x in values.items()]
    # In turn c, b, e, f and a are chosen: one of the twins at 0 is no neighbour of anyone left.
    assert aggregate_updates(None, sent, bulyan(1)).tensors["w"].item() == 7.0
    assert aggregate_updates(None, sent, bulyan(1, compat="flower")).tensors["w"].item() == 6.0


def test_without_malicious_clients_it_is_the_mean():
    sent = [Update(n, {"w": torch.tensor([x])}) for n, x in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    assert aggregate_updates(None, sent, bulyan(num_malicious=0)).tensors["w"].item() == 3.0


def test_too_few_clients_and_wrong_parameters():
    sent = [Update(n, {"w": torch.zeros(1)}) for n in "abcdef"]
    with pytest.raises(InvalidParameter, match=r"needs at least 7 clients \(4 · 1 \+ 3\), and 6"):
        aggregate_updates(None, sent, bulyan(num_malicious=1))
    with pytest.raises(InvalidParameter, match="'compat' parameter of bulyan"):
        bulyan(compat="mergekit")
