"""FedAdam: Adam on the server."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Given
from alloykit.federation.fedadam import early_correction, fedadam


def two_rounds(**parameters):
    step, slots, seen = fedadam(**parameters).step, {}, []
    for round_, (server, combined) in enumerate(((1.0, 3.0), (1.5, 1.0)), start=1):
        tensors = (torch.tensor([x], dtype=torch.float64) for x in (server, combined))
        result, slots = step.change(Given("w", *tensors, slots, round_, 4, {}))
        seen.append(result.item())
    return seen, {name: slot.item() for name, slot in slots.items()}


def test_two_rounds_by_hand():
    seen, slots = two_rounds(server_learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=0.01)
    # Round 1: change 2, m = 0.2, v = 0.04. Round 2: change -0.5, m = 0.13, v = 0.0421.
    assert seen[0] == pytest.approx(1.0 + 0.1 * 0.2 / (0.2 + 0.01), rel=1e-14)
    assert seen[1] == pytest.approx(1.5 + 0.1 * 0.13 / (math.sqrt(0.0421) + 0.01), rel=1e-14)
    assert slots == pytest.approx({"first_moment": 0.13, "second_moment": 0.0421}, rel=1e-14)


def test_flowers_correction_is_a_factor_on_the_rate():
    plain, _ = two_rounds(server_learning_rate=0.1)
    flower, _ = two_rounds(server_learning_rate=0.1, compat="flower")
    ratios = [(f - s) / (p - s) for f, p, s in zip(flower, plain, (1.0, 1.5), strict=True)]
    assert ratios == pytest.approx([early_correction(0.9, 0.99, 1), early_correction(0.9, 0.99, 2)])
    assert early_correction(0.9, 0.99, 1) == pytest.approx(math.sqrt(1 - 0.9801) / (1 - 0.81))
    assert early_correction(0.9, 0.99, 10_000) == pytest.approx(1.0)


def test_wrong_parameters():
    with pytest.raises(InvalidParameter, match="The 'tau' parameter of fedadam must be a finite"):
        fedadam(tau=0.0)
    with pytest.raises(InvalidParameter, match="'compat' parameter of fedadam must be None or 'fl"):
        fedadam(compat="flwr")
    with pytest.raises(InvalidParameter, match="beta_2"):
        fedadam(beta_2=1.0)
