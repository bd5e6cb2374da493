"""Differential privacy on the server, with a fixed clip norm."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Given, Report, ServerState
from alloykit.federation.dp_fixed_clipping import dp_fixed_clipping
from alloykit.federation.fedavg import fedavg
from alloykit.federation.update import Update

SERVER = {"w": torch.zeros(20_000), "bn.running_mean": torch.ones(5_000)}


def sent(count: int = 4, size: float = 0.01):
    generator = torch.Generator().manual_seed(1)
    return [
        Update(
            f"c{i}",
            {n: t + torch.randn(t.shape, generator=generator) * size for n, t in SERVER.items()},
            num_examples=50,
        )
        for i in range(count)
    ]


def test_without_noise_and_clipping_it_is_fedavg_bit_for_bit():
    updates = sent()
    ours = aggregate_updates(SERVER, updates, dp_fixed_clipping(math.inf, 0.0))
    plain = aggregate_updates(SERVER, updates, fedavg())
    assert all(torch.equal(ours.tensors[name], plain.tensors[name]) for name in SERVER)
    reports = [Report("a", norm=3.0), Report("b", norm=0.0), Report("c", norm=1e9)]
    one, other = (
        m.rule(ServerState()).coefficients(reports)
        for m in (dp_fixed_clipping(math.inf, 0.0), fedavg())
    )
    assert one == other


def test_noise_on_every_element_has_the_deviation_of_the_norm_that_was_used():
    made = dp_fixed_clipping(clip_norm=0.5, noise_multiplier=2.0, seed=11)
    updates = sent()
    noisy = aggregate_updates(SERVER, updates, made).tensors
    clean = aggregate_updates(SERVER, updates, dp_fixed_clipping(0.5, 0.0)).tensors
    for name in SERVER:
        # z · C / n = 2 · 0.5 / 4
        assert (noisy[name] - clean[name]).std().item() == pytest.approx(0.25, rel=0.05)
    again = aggregate_updates(SERVER, updates[::-1], made).tensors
    assert all(torch.equal(noisy[name], again[name]) for name in SERVER)


def test_the_denominator_can_be_the_expected_number():
    made = dp_fixed_clipping(1.0, 2.0, clients_per_round=10)
    reports = [Report("a", num_examples=1e9, norm=4.0), Report("b", norm=0.5)]
    assert made.rule(ServerState()).coefficients(reports) == pytest.approx([0.025, 0.1])
    fixed = dp_fixed_clipping(1.0, 2.0, clients_per_round=10, seed=3).step
    few = dp_fixed_clipping(1.0, 2.0, seed=3).step
    given = Given("w", SERVER["w"], SERVER["w"], {}, 1, 2, {})
    assert fixed.change(given)[0].std().item() == pytest.approx(0.2, rel=0.05)
    assert few.change(given)[0].std().item() == pytest.approx(1.0, rel=0.05)


def test_one_client_moves_the_mean_by_no_more_than_its_share():
    honest = sent(3, size=0.0)
    liar = Update(
        "z", {"w": SERVER["w"] + 7.0, "bn.running_mean": SERVER["bn.running_mean"]}, num_examples=90
    )
    done = aggregate_updates(SERVER, [*honest, liar], dp_fixed_clipping(1.0, 0.0)).tensors
    assert done["w"].norm().item() == pytest.approx(0.25, rel=1e-5)


def test_changes_of_length_zero_are_fine():
    done = aggregate_updates(SERVER, sent(3, size=0.0), dp_fixed_clipping(0.1, 1.0, seed=1))
    assert bool(torch.isfinite(done.tensors["w"]).all())


def test_wrong_parameters():
    with pytest.raises(
        InvalidParameter, match="cannot add noise in units of an infinite clip_norm"
    ):
        dp_fixed_clipping(math.inf, 1.0)
    with pytest.raises(InvalidParameter) as caught:
        dp_fixed_clipping(0.0, -1.0, clients_per_round=0, seed=-1)
    assert [line.split("'")[1] for line in str(caught.value).splitlines()[1:]] == [
        "clip_norm", "noise_multiplier", "clients_per_round", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize("of", [None, "fedavgm"])
def test_no_client_decides_whether_another_counts(of: str | None) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 0.0}
    name, given = "dp_fixed_clipping", private
    if of is not None:
        name, given = of, {"of": {"method": name, **private}}
    updates = [
        Update(n, {"w": torch.tensor([x])}) for n, x in zip("abc", (1e-3, 1e-3, 1e6), strict=True)
    ]
    found = aggregate_updates({"w": torch.zeros(1)}, updates, as_aggregator(name, given))
    assert [each.client for each in found.record.counted] == ["a", "b", "c"]
