"""FedYogi: Yogi on the server."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Given
from alloykit.federation.fedyogi import fedyogi


def test_v_rises_and_falls_by_the_size_of_the_change_alone():
    step, slots = fedyogi(server_learning_rate=0.1, beta_1=0.5, beta_2=0.9, tau=0.01).step, {}
    seen = []
    for change in (2.0, 0.5, 0.0):
        tensors = (torch.tensor([x], dtype=torch.float64) for x in (1.0, 1.0 + change))
        result, slots = step.change(Given("w", *tensors, slots, 1, 4, {}))
        seen.append((slots["first_moment"].item(), slots["second_moment"].item(), result.item()))
    # m: 1, 0.75, 0.375. v: 0 + 0.1·4; then 0.4 > 0.25, so 0.4 - 0.1·0.25; then unchanged.
    for (m, v, x), (m_, v_) in zip(seen, ((1.0, 0.4), (0.75, 0.375), (0.375, 0.375)), strict=True):
        assert (m, v) == pytest.approx((m_, v_), rel=1e-14)
        assert x == pytest.approx(1.0 + 0.1 * m_ / (math.sqrt(v_) + 0.01), rel=1e-14)


def test_wrong_parameters():
    with pytest.raises(InvalidParameter, match="'beta_1' parameter of fedyogi"):
        fedyogi(beta_1=-0.1)
