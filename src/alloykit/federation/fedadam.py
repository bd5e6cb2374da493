"""FedAdam: Adam on the server."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from alloykit.federation.contract import Given, Parts, aggregator
from alloykit.federation.limits import fraction, one_of, positive, refuse
from alloykit.federation.server_optimizers import Of, Slots, adaptive_step, with_step


@aggregator(
    formula="m ← β₁·m + (1−β₁)·Δ;  v ← β₂·v + (1−β₂)·Δ²;  server + η·m/(√v + τ)",
    paper="Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295.",
)
def fedadam(
    of: Of = "fedavg",
    *,
    server_learning_rate: float = 0.1,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    compat: Literal["flower"] | None = None,
) -> Parts:
    """Take Adam's steps on the server, with the mean change of the clients as the gradient.

    change = combined − server; m = beta_1 · m + (1 − beta_1) · change;
    v = beta_2 · v + (1 − beta_2) · change²;
    new = server + server_learning_rate · m / (√v + tau). m and v begin at 0.

    Use it when plain averaging learns slowly, as with unlike clients and few local steps.

    Args:
        of: The aggregator whose result is the combined model: a name, or a mapping of "method"
            and its parameters.
        server_learning_rate: Length of a step of an element, about; above 0. The default 0.1 is
            Flower's, and large for a model that was trained before.
        beta_1: How much of the momentum is kept, in [0, 1); 0.9 in the paper.
        beta_2: How much of v is kept, in [0, 1); 0.99 in the paper.
        tau: Added to the divisor, above 0: smaller is more adaptive. 1e-3 is the paper's choice.
        compat: "flower" multiplies the learning rate of round t with
            √(1 − beta_2^(t+1)) / (1 − beta_1^(t+1)), as Flower does: 0.74 at first, 1 in the end.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> server, combined = torch.zeros(2), torch.tensor([3.0, -0.1])
        >>> given = Given("w", server, combined, {}, round=1, clients=3, numbers={})
        >>> fedadam(tau=1e-9).step.change(given)[0]
        tensor([ 0.1000, -0.1000])

    References:
        Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295, algorithm 2, which
        has no correction of the early rounds. Differs in starting v at 0 rather than at tau² or
        more, as Flower does; from Flower in leaving the statistics of BatchNorm as they were
        averaged, and in keeping float32 where Flower gives float64.
    """
    refuse(
        "fedadam",
        [
            positive("server_learning_rate", server_learning_rate),
            fraction("beta_1", beta_1),
            fraction("beta_2", beta_2),
            positive("tau", tau),
            one_of("compat", compat, (None, "flower")),
        ],
    )

    def grow(v: Tensor, squares: Tensor) -> Tensor:
        return torch.add(v * beta_2, squares, alpha=1.0 - beta_2)

    def change(given: Given) -> tuple[Tensor, Slots]:
        correction = early_correction(beta_1, beta_2, given.round) if compat else 1.0
        rate = server_learning_rate * correction
        return adaptive_step(given, grow, learning_rate=rate, beta_1=beta_1, tau=tau)

    return with_step(of, change)


def early_correction(beta_1: float, beta_2: float, round_: int) -> float:
    """What Flower multiplies the learning rate of a round with.

    Example:
        >>> round(early_correction(0.9, 0.99, 1), 4)
        0.7425
    """
    return math.sqrt(1.0 - beta_2 ** (round_ + 1)) / (1.0 - beta_1 ** (round_ + 1))
