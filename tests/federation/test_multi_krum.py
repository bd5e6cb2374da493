"""Multi-Krum: the mean of the clients that are closest to their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report
from alloykit.federation.krum import krum
from alloykit.federation.multi_krum import multi_krum
from alloykit.federation.update import Update


def reports(count: int):
    return [Report(chr(97 + i), num_examples=10.0**i) for i in range(count)]


def test_all_that_are_selected_count_the_same_whatever_they_claim():
    sent = [
        Update(name, {"w": torch.tensor([x], dtype=torch.float64)}, num_examples=n)
        for name, x, n in (
            ("a", 1.0, 1),
            ("b", 2.0, 900),
            ("c", 3.0, 5),
            ("d", 4.0, 7),
            ("e", 1e6, 9),
        )
    ]
    assert aggregate_updates(None, sent, multi_krum(num_malicious=1)).tensors["w"].item() == 2.5


def test_one_selected_is_krum():
    rows = np.random.default_rng(1).standard_normal((9, 4))
    products = rows @ rows.T
    found = [m.rule(None).coefficients(products, reports(9)) for m in (multi_krum(2, 1), krum(2))]
    assert found[0] == found[1]


def test_more_than_the_honest_cannot_be_selected():
    made = multi_krum(num_malicious=1, num_selected=5)
    with pytest.raises(InvalidParameter, match=r"cannot select 5 of 5 clients .* at most 4"):
        made.rule(None).coefficients(np.eye(5), reports(5))
    assert sum(made.rule(None).coefficients(np.eye(6), reports(6))) == pytest.approx(1.0)


def test_too_few_clients_and_wrong_parameters():
    with pytest.raises(InvalidParameter, match="needs at least 5 clients"):
        multi_krum().rule(None).coefficients(np.eye(4), reports(4))
    with pytest.raises(
        InvalidParameter, match="num_selected' parameter of multi_krum must be a whole"
    ):
        multi_krum(1, 0)
