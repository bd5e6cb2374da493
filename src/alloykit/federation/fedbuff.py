"""FedBuff: clients that come late count less."""

from __future__ import annotations

from alloykit.federation.contract import Parts, Sum, aggregator
from alloykit.federation.limits import not_negative, positive, refuse
from alloykit.federation.server_optimizers import longer_steps


@aggregator(
    asks=frozenset({"staleness", "server"}),
    formula="server + η/K·Σ Δᵢ/(1+τᵢ)^a,  τᵢ rounds late",
    paper="Nguyen et al., Federated learning with buffered aggregation, arXiv:2106.06639.",
)
def fedbuff(exponent: float = 0.5, server_learning_rate: float = 1.0) -> Parts:
    """Add up the changes of K clients that came in at any time, late ones with less weight.

    new = server + server_learning_rate / K · Σ Δᵢ / (1 + τᵢ)^exponent, where Δᵢ is what client i
    changed in the model that it started from, τᵢ rounds ago

    Use it when clients differ much in speed: the server goes on as soon as K updates are there
    (``Round.close``), and nobody waits for the slowest.

    Args:
        exponent: How fast weight falls with lateness, at least 0; 0.5 in the paper, 0 not at all.
        server_learning_rate: Above 0. 1 takes the whole step. Statistics of BatchNorm are only
            averaged.

    Needs:
        From a client that is late, what it changed instead of its model (``Update(delta=True)``),
        and the round that it started from.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> reports = [Report("a"), Report("b", staleness=3)]
        >>> fedbuff().rule(None).coefficients(reports)
        [0.5, 0.25]

    References:
        Nguyen et al., Federated learning with buffered asynchronous aggregation, 2022,
        arXiv:2106.06639, algorithm 1 and section 5 for the weights.
    """
    refuse(
        "fedbuff",
        [
            not_negative("exponent", exponent),
            positive("server_learning_rate", server_learning_rate),
        ],
    )
    return Parts(
        Sum(
            factor=lambda report: float((1.0 + report.staleness) ** -exponent),
            divisor=len,
        ),
        step=longer_steps(server_learning_rate),
    )
