"""FedAvg: the mean of the clients, each counting as many times as it has examples."""

from __future__ import annotations

from alloykit.federation.contract import Parts, Sum, aggregator


@aggregator(
    asks=frozenset({"num_examples"}),
    formula="Σ nᵢ·clientᵢ / Σ nᵢ",
    paper="McMahan et al., Communication-efficient learning, 2017, arXiv:1602.05629.",
)
def fedavg() -> Parts:
    """Average the clients, each weighted by its number of examples.

    new = Σ nᵢ · clientᵢ / Σ nᵢ

    Use it first: where clients are honest and their data are alike it is hard to beat. One client
    that lies about its tensors or its number of examples can take it over; ``median``,
    ``trimmed_mean`` and ``multi_krum`` hold against that.

    Needs:
        num_examples of every client; where nobody gives one, all count the same.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> rule = fedavg().rule(None)
        >>> rule.coefficients([Report("a", num_examples=300), Report("b", num_examples=100)])
        [0.75, 0.25]

    References:
        McMahan, Moore, Ramage, Hampson and Agüera y Arcas, Communication-efficient learning of
        deep networks from decentralized data, 2017, arXiv:1602.05629, algorithm 1.
    """
    return Parts(
        Sum(
            factor=lambda report: report.num_examples,
            divisor=lambda reports: sum(report.num_examples for report in reports),
        )
    )
