"""FedYogi: Yogi on the server."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.federation.contract import Parts, aggregator
from alloykit.federation.limits import fraction, positive, refuse
from alloykit.federation.server_optimizers import Of, adaptive_step, with_step


@aggregator(
    formula="v ← v − (1−β₂)·Δ²·sign(v − Δ²);  server + η·m/(√v + τ),  Δ = combined − server",
    paper="Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295.",
)
def fedyogi(
    of: Of = "fedavg",
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
) -> Parts:
    """Take Adam's steps on the server, with a divisor that falls slowly after a large change.

    change = combined − server; m = beta_1 · m + (1 − beta_1) · change;
    v = v − (1 − beta_2) · change² · sign(v − change²);
    new = server + server_learning_rate · m / (√v + tau). m and v begin at 0.

    Use it like ``fedadam`` where rounds differ much, with few clients in each.

    Args:
        of: The aggregator whose result is the combined model: a name, or a mapping of "method"
            and its parameters.
        server_learning_rate: Above 0. The default 0.01 is Flower's.
        beta_1: How much of the momentum is kept, in [0, 1); 0.9 in the paper.
        beta_2: 1 less how fast v follows, in [0, 1); 0.99 in the paper.
        tau: Added to the divisor, above 0: smaller is more adaptive. 1e-3 is the paper's choice.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> from alloykit.federation.contract import Given
        >>> server, combined = torch.zeros(2), torch.tensor([3.0, -0.1])
        >>> given = Given("w", server, combined, {}, round=1, clients=3, numbers={})
        >>> fedyogi(tau=1e-9).step.change(given)[0]
        tensor([ 0.0100, -0.0100])

    References:
        Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295, algorithm 2; Zaheer
        et al., Adaptive methods for nonconvex optimization, NeurIPS 2018. Differs in starting v
        at 0 rather than at tau² or more, as Flower does; from Flower in leaving the statistics of
        BatchNorm as they were averaged.
    """
    refuse(
        "fedyogi",
        [
            positive("server_learning_rate", server_learning_rate),
            fraction("beta_1", beta_1),
            fraction("beta_2", beta_2),
            positive("tau", tau),
        ],
    )

    def grow(v: Tensor, squares: Tensor) -> Tensor:
        return torch.sub(v, squares * (v - squares).sign_(), alpha=1.0 - beta_2)

    return with_step(
        of,
        lambda given: adaptive_step(
            given, grow, learning_rate=server_learning_rate, beta_1=beta_1, tau=tau
        ),
    )
