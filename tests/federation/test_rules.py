"""What all aggregators of a kind have in common."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report, ServerState, Sum
from alloykit.federation.update import Update
from alloykit.registry import aggregators

REQUIRED = {
    "norm_clipping": {"max_norm": 1e6},
    "centred_clipping": {"clip_norm": 1e6},
    "dp_fixed_clipping": {"clip_norm": 1e6, "noise_multiplier": 0.0},
    "dp_adaptive_clipping": {"noise_multiplier": 0.0, "initial_clip_norm": 1e6},
    "qfedavg": {"client_learning_rate": 0.1, "q": 0.0},
    "scaffold": {"num_clients": 7},
}
AVERAGING = (
    "fedavg", "fedavgm", "fednova", "scaffold", "qfedavg", "fedbuff", "krum", "multi_krum",
    "bulyan", "rfa", "norm_clipping", "centred_clipping", "dp_fixed_clipping",
    "dp_adaptive_clipping",
)  # fmt: skip
"""With these parameters, and equal clients, the result is that client."""

reports_of_clients = st.lists(
    st.tuples(
        st.integers(1, 10_000), st.floats(0.0, 100.0), st.integers(1, 50), st.floats(0.01, 9.0)
    ),
    min_size=1,
    max_size=6,
)


def built(name: str):
    return aggregators.build(name, **REQUIRED.get(name, {}))


def sums():
    every = [entry.name for entry in aggregators.entries()]
    return [name for name in every if built(name).needs == "sum"]


def coefficients(name: str, reports):
    rule = built(name).rule(ServerState())
    assert isinstance(rule, Sum)
    return rule.coefficients(reports)


def reports(drawn, scale: int = 1):
    return [
        Report(f"c{i}", num_examples=float(n * scale), steps=float(steps), loss=loss, norm=norm)
        for i, (n, norm, steps, loss) in enumerate(drawn)
    ]


@pytest.mark.parametrize("name", sums())
@given(drawn=reports_of_clients, scale=st.sampled_from([2, 3, 1000]))
def test_only_the_ratio_of_examples_counts(name: str, drawn, scale: int):
    one, other = coefficients(name, reports(drawn)), coefficients(name, reports(drawn, scale))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("name", sums())
@given(drawn=reports_of_clients, order=st.randoms(use_true_random=False))
def test_the_order_of_clients_is_irrelevant(name: str, drawn, order):
    given_ = reports(drawn)
    turned = given_[:]
    order.shuffle(turned)
    one = dict(zip([r.client for r in given_], coefficients(name, given_), strict=True))
    other = dict(zip([r.client for r in turned], coefficients(name, turned), strict=True))
    assert one == pytest.approx(other, rel=1e-12)


def updates(tensors, count: int = 7):
    return [
        Update(f"c{i}", tensors, num_examples=10 * i + 1, steps=4.0, loss=0.5, control={})
        for i in range(count)
    ]


@pytest.mark.parametrize("name", AVERAGING)
def test_equal_clients_give_that_client(name: str):
    generator = torch.Generator().manual_seed(3)
    server = {"w": torch.randn(3, 5, generator=generator), "n": torch.tensor(3)}
    client = {"w": torch.randn(3, 5, generator=generator), "n": torch.tensor(3)}
    done = aggregate_updates(server, updates(client), built(name))
    torch.testing.assert_close(done.tensors["w"], client["w"], rtol=1e-6, atol=1e-6)
    assert done.tensors["n"].dtype == torch.int64


@pytest.mark.parametrize("name", AVERAGING)
def test_the_order_of_arrival_does_not_change_a_bit(name: str):
    generator = torch.Generator().manual_seed(8)
    server = {"w": torch.randn(50, generator=generator)}
    sent = [
        Update(
            f"c{i}",
            {"w": torch.randn(50, generator=generator)},
            num_examples=i + 1,
            steps=2.0,
            loss=0.1,
            control={},
        )
        for i in range(7)
    ]
    one = aggregate_updates(server, sent, built(name)).tensors["w"]
    other = aggregate_updates(server, sent[::-1], built(name)).tensors["w"]
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", [entry.name for entry in aggregators.entries()])
def test_every_one_can_be_rebuilt_from_its_parameters_as_json(name: str):
    made = built(name)
    again = aggregators.build(name, **json.loads(json.dumps(made.parameters)))
    assert (again.name, again.parameters, again.needs, again.asks) == (
        name, made.parameters, made.needs, made.asks,
    )  # fmt: skip


@pytest.mark.parametrize("entry", aggregators.entries(), ids=lambda entry: entry.name)
def test_every_one_is_documented(entry):
    assert 0 < len(entry.summary) <= 100
    assert entry.contract["formula"]
    assert entry.contract["paper"]
    for word in ("Use it ", "Example:", "References:"):
        assert word in entry.factory.__doc__
