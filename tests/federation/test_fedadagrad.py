"""FedAdagrad: AdaGrad on the server."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Given
from alloykit.federation.fedadagrad import fedadagrad


@pytest.mark.parametrize("beta_1", [0.0, 0.5])
def test_steps_grow_shorter(beta_1: float):
    step, slots = fedadagrad(server_learning_rate=0.2, beta_1=beta_1, tau=0.5).step, {}
    moment, squares = 0.0, 0.0
    for change in (3.0, -4.0, 1.0):
        moment, squares = beta_1 * moment + (1 - beta_1) * change, squares + change**2
        tensors = (torch.tensor([x], dtype=torch.float64) for x in (2.0, 2.0 + change))
        result, slots = step.change(Given("w", *tensors, slots, 1, 4, {}))
        assert result.item() == pytest.approx(
            2.0 + 0.2 * moment / (math.sqrt(squares) + 0.5), rel=1e-14
        )
    assert slots["second_moment"].item() == 26.0


def test_wrong_parameters():
    with pytest.raises(InvalidParameter, match="'server_learning_rate' parameter of fedadagrad"):
        fedadagrad(server_learning_rate=float("nan"))
