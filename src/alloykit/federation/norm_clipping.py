"""Norm clipping: no client moves the model farther than a given length."""

from __future__ import annotations

from alloykit.federation.clipping import clipped
from alloykit.federation.contract import Parts, Sum, aggregator
from alloykit.federation.limits import positive, refuse


@aggregator(
    asks=frozenset({"num_examples", "norm", "server"}),
    formula="server + Σ nᵢ·min(1, C/|Δᵢ|)·Δᵢ / Σ nᵢ,  Δᵢ = clientᵢ − server",
    paper="Sun et al., Can you really backdoor federated learning?, 2019, arXiv:1911.07963.",
)
def norm_clipping(max_norm: float) -> Parts:
    """Average the clients' changes, each cut to a length of at most ``max_norm``.

    new = server + Σ nᵢ · min(1, max_norm / |Δᵢ|) · Δᵢ / Σ nᵢ, with Δᵢ = clientᵢ − server

    Use it against clients that blow up their changes, as those that plant a backdoor do, and
    where the sum must stay one that secure aggregation could carry. A client with a large number
    of examples still has much to say: ``Checks.max_examples`` limits it.

    Args:
        max_norm: Longest change, a 2-norm over all averaged tensors together, above 0. About the
            median of the norms in a round's record is a good choice. Infinity is ``fedavg``.

    Raises:
        InvalidParameter: max_norm is not above 0.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> reports = [Report("a", norm=0.5), Report("b", norm=10.0)]
        >>> norm_clipping(max_norm=1.0).rule(None).coefficients(reports)
        [0.5, 0.05]

    References:
        Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated learning?, 2019,
        arXiv:1911.07963, section 3.
    """
    refuse("norm_clipping", [positive("max_norm", max_norm, infinite=True)])
    return Parts(
        Sum(
            factor=lambda report: report.num_examples * clipped(report, max_norm, "norm_clipping"),
            divisor=lambda reports: sum(report.num_examples for report in reports),
        )
    )
