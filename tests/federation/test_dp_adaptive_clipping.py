"""Differential privacy on the server, with a clip norm that follows a quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Report, ServerState
from alloykit.federation.dp_adaptive_clipping import dp_adaptive_clipping, noise_shares
from alloykit.federation.dp_fixed_clipping import dp_fixed_clipping
from alloykit.federation.update import Update

NORMS = np.linspace(5.0, 15.0, 40)
REPORTS = [Report(f"c{i}", norm=float(norm)) for i, norm in enumerate(NORMS)]


def followed(made, rounds: int) -> float:
    numbers = {}
    for round_ in range(rounds):
        numbers = made.numbers(ServerState(round_, numbers), REPORTS)
    return numbers["clip_norm"]


@pytest.mark.parametrize("start", [0.1, 100.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_from_below_and_above_it_finds_the_quantile(start: float, quantile: float):
    made = dp_adaptive_clipping(0.0, initial_clip_norm=start, target_quantile=quantile)
    assert followed(made, 200) == pytest.approx(np.quantile(NORMS, quantile), rel=0.06)
    noisy = dp_adaptive_clipping(0.5, initial_clip_norm=start, target_quantile=quantile, seed=2)
    assert followed(noisy, 200) == pytest.approx(np.quantile(NORMS, quantile), rel=0.25)


def test_one_round_by_hand():
    reports = [
        Report("a", norm=1.0),
        Report("b", norm=2.0),
        Report("c", norm=4.0),
        Report("d", norm=0.0),
    ]
    made = dp_adaptive_clipping(0.0, initial_clip_norm=2.0, clip_learning_rate=0.2)
    assert made.rule(ServerState()).coefficients(reports) == [0.25, 0.25, 0.125, 0.25]
    # Three of four are no longer than 2.
    assert made.numbers(ServerState(), reports) == {"clip_norm": 2.0 * math.exp(-0.2 * 0.25)}


def test_the_noise_is_that_of_the_norm_that_was_used():
    server = {"w": torch.zeros(20_000)}
    updates = [Update(f"c{i:02}", {"w": server["w"] + 1.0}) for i in range(40)]
    state = ServerState(3, {"clip_norm": 0.8})
    made = dp_adaptive_clipping(1.0, seed=9)
    done = aggregate_updates(server, updates, made, state=state)
    z, _ = noise_shares(1.0, None, 40)
    assert done.tensors["w"].std().item() == pytest.approx(z * 0.8 / 40, rel=0.03)
    assert done.state.numbers["clip_norm"] == pytest.approx(0.8 * math.exp(0.1), rel=0.05)
    fixed = aggregate_updates(server, updates, dp_fixed_clipping(0.8, 0.0))
    quiet = aggregate_updates(server, updates, dp_adaptive_clipping(0.0), state=state)
    assert torch.equal(fixed.tensors["w"], quiet.tensors["w"])


def test_a_round_that_is_run_again_ends_in_the_same_bits():
    server = {"w": torch.zeros(10)}
    updates = [Update(f"c{i:02}", {"w": server["w"] + i}) for i in range(40)]
    first, second = (
        aggregate_updates(server, updates, dp_adaptive_clipping(1.0, seed=9)) for _ in "ab"
    )
    assert torch.equal(first.tensors["w"], second.tensors["w"])
    assert first.state.numbers == second.state.numbers


def test_noise_on_sum_and_count_together_are_the_noise_asked_for():
    z, deviation = noise_shares(1.0, None, 100)
    assert deviation == 5.0
    assert z**-2 + (2 * deviation) ** -2 == pytest.approx(1.0)
    assert noise_shares(0.0, None, 1) == (0.0, 0.0)


def test_too_little_noise_on_the_count():
    with pytest.raises(
        InvalidParameter,
        match=r"noise_multiplier=1 with noise of 0.5 on the count \(10 clients / 20\): it must be above 0.5",
    ):
        dp_adaptive_clipping(1.0, clients_per_round=10)
    with pytest.raises(InvalidParameter, match=r"of 0.3 on the count \(count_deviation\)"):
        dp_adaptive_clipping(1.0, count_deviation=0.3)
    made = dp_adaptive_clipping(1.0)
    with pytest.raises(InvalidParameter, match="let more clients take part"):
        made.numbers(ServerState(), REPORTS[:10])


def test_all_wrong_parameters_are_named():
    with pytest.raises(InvalidParameter) as caught:
        dp_adaptive_clipping(
            -1.0,
            initial_clip_norm=0.0,
            target_quantile=1.5,
            clip_learning_rate=0,
            count_deviation=0,
        )
    assert len(str(caught.value).splitlines()) == 6
