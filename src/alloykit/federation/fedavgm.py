"""FedAvgM: momentum on the server."""

from __future__ import annotations

from alloykit.federation.contract import Parts, aggregator
from alloykit.federation.limits import fraction, positive, refuse
from alloykit.federation.server_optimizers import Of, momentum_step, with_step


@aggregator(
    formula="m ← β·m + (combined − server);  server + η·m",
    paper="Hsu, Qi and Brown, Measuring the effects of non-identical data, 2019, arXiv:1909.06335.",
)
def fedavgm(
    of: Of = "fedavg", *, server_learning_rate: float = 1.0, server_momentum: float = 0.9
) -> Parts:
    """Average the clients, and let the server's model gather momentum from round to round.

    m = server_momentum · m + (combined − server); new = server + server_learning_rate · m

    Use it when clients hold unlike data and the mean swings from round to round. Lower the
    learning rate when the momentum is high: in the long run a step counts
    1 / (1 − server_momentum) times.

    Args:
        of: The aggregator whose result is the combined model: a name, or a mapping of "method"
            and its parameters.
        server_learning_rate: Above 0. 1 takes the whole step.
        server_momentum: In [0, 1); 0 is plain descent. The default 0.9 is the authors' common
            choice; Flower's default 0 is FedAvg.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> import torch
        >>> from alloykit.federation.contract import Given
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> given = Given("w", zero, one, {"first_moment": one}, round=2, clients=3, numbers={})
        >>> fedavgm().step.change(given)[0]
        tensor([1.9000])

    References:
        Hsu, Qi and Brown, Measuring the effects of non-identical data distribution for federated
        visual classification, 2019, arXiv:1909.06335, section 3. Differs from Flower in leaving
        the statistics of BatchNorm and whole numbers as they were averaged.
    """
    refuse(
        "fedavgm",
        [
            positive("server_learning_rate", server_learning_rate),
            fraction("server_momentum", server_momentum),
        ],
    )
    return with_step(of, lambda given: momentum_step(given, server_learning_rate, server_momentum))
