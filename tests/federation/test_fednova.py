"""FedNova: clients that took more steps do not pull harder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import MissingInput
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Given, Report
from alloykit.federation.fednova import fednova
from alloykit.federation.update import Update


def test_by_hand():
    # p = 1/4, 3/4; a = 2, 10; tau = 8; new = 5 + 8 · (1/4 · 4/2 + 3/4 · (-5)/10)
    server = {"w": torch.tensor([5.0], dtype=torch.float64)}
    updates = [
        Update("a", {"w": server["w"] + 4.0}, num_examples=100, steps=2),
        Update("b", {"w": server["w"] - 5.0}, num_examples=300, steps=10),
    ]
    done = aggregate_updates(server, updates, fednova())
    assert done.tensors["w"].item() == pytest.approx(5.0 + 8.0 * (0.5 - 0.375), rel=1e-14)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.floats(1.0, 100.0))
def test_with_equal_steps_it_is_fedavg(examples, steps):
    reports = [Report(str(i), num_examples=n, steps=steps) for i, n in enumerate(examples)]
    shares = [n / sum(examples) for n in examples]
    assert fednova().rule(None).coefficients(reports) == pytest.approx(shares, rel=1e-12)


def test_a_client_without_steps_is_named():
    with pytest.raises(
        MissingInput, match=r"fednova needs the number of local steps .* 'b' has none"
    ):
        fednova().rule(None).coefficients([Report("a", steps=1), Report("b")])


def test_statistics_are_averaged_where_the_factors_sum_to_more_than_one():
    step = fednova().step
    server, combined = torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 5.0])
    given_ = Given("bn.running_var", server, combined, {}, 1, 2, {}, total=3.0)
    torch.testing.assert_close(step.buffers(given_), torch.tensor([0.5, 3.0]))
    assert step.change(given_)[0] is combined
