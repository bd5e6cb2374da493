"""FedAdagrad: AdaGrad on the server."""

from __future__ import annotations

from alloykit.federation.contract import Parts, aggregator
from alloykit.federation.limits import fraction, positive, refuse
from alloykit.federation.server_optimizers import Of, adaptive_step, with_step


@aggregator(
    formula="v ← v + Δ²;  server + η·m/(√v + τ),  Δ = combined − server",
    paper="Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295.",
)
def fedadagrad(
    of: Of = "fedavg",
    *,
    server_learning_rate: float = 0.1,
    beta_1: float = 0.0,
    tau: float = 1e-3,
) -> Parts:
    """Take steps that grow shorter, element by element, with all changes there were so far.

    change = combined − server; m = beta_1 · m + (1 − beta_1) · change; v = v + change²;
    new = server + server_learning_rate · m / (√v + tau). m and v begin at 0.

    Use it when some parameters, such as embeddings of rare words, are changed by few clients only.

    Args:
        of: The aggregator whose result is the combined model: a name, or a mapping of "method"
            and its parameters.
        server_learning_rate: Length of the first step of an element, about; above 0. The default
            0.1 is Flower's, and large for a model that was trained before.
        beta_1: How much of the momentum is kept, in [0, 1); 0 is none, as in the paper's
            experiments.
        tau: Added to the divisor, above 0: smaller is more adaptive. 1e-3 is the paper's choice.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> import torch
        >>> from alloykit.federation.contract import Given
        >>> server, combined = torch.zeros(2), torch.tensor([3.0, -0.1])
        >>> given = Given("w", server, combined, {}, round=1, clients=3, numbers={})
        >>> fedadagrad(tau=1e-9).step.change(given)[0]
        tensor([ 0.1000, -0.1000])

    References:
        Reddi et al., Adaptive federated optimization, 2021, arXiv:2003.00295, algorithm 2.
        Differs in starting v at 0 rather than at tau² or more, as Flower does; from Flower in
        leaving the statistics of BatchNorm as they were averaged.
    """
    refuse(
        "fedadagrad",
        [
            positive("server_learning_rate", server_learning_rate),
            fraction("beta_1", beta_1),
            positive("tau", tau),
        ],
    )
    return with_step(
        of,
        lambda given: adaptive_step(
            given,
            lambda v, squares: v + squares,
            learning_rate=server_learning_rate,
            beta_1=beta_1,
            tau=tau,
        ),
    )
