"""RFA: the geometric median of the clients' whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report
from alloykit.federation.rfa import rfa
from alloykit.federation.update import Update


@pytest.mark.parametrize("weighted", [False, True])
def test_the_least_sum_of_distances_over_all_tensors(weighted: bool):
    rows = np.random.default_rng(2).standard_normal((6, 5))
    examples = [1, 2, 3, 1, 5, 2]
    sent = [
        Update(
            f"c{i}",
            {"w": torch.from_numpy(row[:3]), "b": torch.from_numpy(row[3:])},
            num_examples=n,
        )
        for i, (row, n) in enumerate(zip(rows, examples, strict=True))
    ]
    done = aggregate_updates(None, sent, rfa(weighted=weighted)).tensors
    weights = examples if weighted else [1] * 6
    found = minimize(
        lambda y: sum(w * np.linalg.norm(y - row) for w, row in zip(weights, rows, strict=True)),
        rows.mean(0), options={"gtol": 1e-9},
    ).x  # fmt: skip
    np.testing.assert_allclose(torch.cat([done["w"], done["b"]]).numpy(), found, atol=1e-5)


def test_it_does_not_matter_where_deltas_start():
    rows = np.random.default_rng(5).standard_normal((5, 7))
    reports = [Report(str(i)) for i in range(5)]
    rule = rfa().rule(None)
    here = rule.coefficients(rows @ rows.T, reports)
    there = rule.coefficients((rows + 3.0) @ (rows + 3.0).T, reports)
    assert here == pytest.approx(there, abs=1e-6)


def test_claimed_examples_count_only_where_asked():
    assert "num_examples" not in rfa().asks
    assert "num_examples" in rfa(weighted=True).asks
    with pytest.raises(InvalidParameter, match="'weighted' parameter of rfa"):
        rfa(weighted="yes")
