"""q-FedAvg: clients that are badly served by the model count more."""

from __future__ import annotations

from alloykit.federation.contract import Parts, Report, Reports, Sum, aggregator
from alloykit.federation.limits import known, not_negative, positive, refuse

SMALLEST = 1e-10
"""Added to each loss, so that a loss of 0 has a power below 0."""


@aggregator(
    asks=frozenset({"loss", "norm", "server"}),
    formula="server + Σ L·Fᵢ^q·Δᵢ / Σ (q·Fᵢ^(q−1)·L²·|Δᵢ|² + L·Fᵢ^q),  L = 1/η",
    paper="Li et al., Fair resource allocation in federated learning, 2020, arXiv:1905.10497.",
)
def qfedavg(client_learning_rate: float, q: float = 0.1) -> Parts:
    """Average the clients' changes so that clients with a high loss count more.

    new = server + Σ L · Fᵢ^q · Δᵢ / Σ (q · Fᵢ^(q−1) · L² · |Δᵢ|² + L · Fᵢ^q), with
    Δᵢ = clientᵢ − server, Fᵢ the loss of the server's model on the client's data, and
    L = 1 / client_learning_rate

    Use it when the model should serve all clients about equally well, at the price of a slower
    mean. The number of examples does not count: in the paper it decides how often a client is
    sampled. A client that claims a high loss counts more, so clients must be honest.

    Args:
        client_learning_rate: Step size of the clients' training, above 0; its inverse stands for
            the Lipschitz constant of the gradient.
        q: How much fairness, at least 0. 0 is the mean of the clients; the paper goes from 0.001
            to 15. The default 0.1 is Flower's.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
        MissingInput: In the round, a client that does not say its loss.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> reports = [Report("a", loss=1.0, norm=0.0), Report("b", loss=4.0, norm=0.0)]
        >>> rule = qfedavg(client_learning_rate=0.1, q=0.5).rule(None)
        >>> [round(each, 4) for each in rule.coefficients(reports)]
        [0.3333, 0.6667]

    References:
        Li, Sanjabi, Beirami and Smith, Fair resource allocation in federated learning, 2020,
        arXiv:1905.10497, algorithm 2. As in the authors' code 1e-10 is added to each loss.
    """
    refuse(
        "qfedavg",
        [positive("client_learning_rate", client_learning_rate), not_negative("q", q)],
    )
    steepness = 1.0 / client_learning_rate

    def factor(report: Report) -> float:
        return steepness * float(_loss(report) ** q)

    def divisor(reports: Reports) -> float:
        return sum(factor(report) + curvature(report) for report in reports)

    def curvature(report: Report) -> float:
        norm = known(report.norm, "norm", report.client, "qfedavg")
        return q * float(_loss(report) ** (q - 1.0)) * (steepness * norm) ** 2

    return Parts(Sum(factor, divisor))


def _loss(report: Report) -> float:
    return known(report.loss, "loss", report.client, "qfedavg") + SMALLEST
