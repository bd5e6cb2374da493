"""Krum: the client that is closest to its neighbours."""

from __future__ import annotations

from alloykit.federation.contract import Gram, Matrix, Parts, Reports, aggregator
from alloykit.federation.krum_scores import closest
from alloykit.federation.limits import refuse, require_clients, whole


@aggregator(
    formula="the client with the least Σ over its n−f−2 nearest |clientᵢ − clientⱼ|²",
    paper="Blanchard et al., Machine learning with adversaries, 2017, arXiv:1703.02757.",
)
def krum(num_malicious: int = 1) -> Parts:
    """Take the one client that is closest to its n − f − 2 nearest neighbours.

    new = the clientᵢ with the least Σⱼ |clientᵢ − clientⱼ|², over its n − f − 2 nearest j

    Use it when up to f clients may send anything at all and safety counts more than using all
    data: what the other clients learned is lost. ``multi_krum`` keeps more of it.

    Args:
        num_malicious: f, how many clients may be malicious, at least 0; the default is 1. With f
            there must be at least 2f + 3 clients in a round. Where there are fewer, f falls by
            as many as were left out for what they sent, at most.

    Raises:
        InvalidParameter: f is negative; in the round, fewer than 2f + 3 clients.

    Example:
        >>> import numpy as np
        >>> from alloykit.federation.contract import Report
        >>> deltas = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
        >>> reports = [Report(name) for name in "abcde"]
        >>> krum(num_malicious=1).rule(None).coefficients(deltas @ deltas.T, reports)
        [0.0, 1.0, 0.0, 0.0, 0.0]

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine
        tolerant gradient descent, 2017, arXiv:1703.02757, section 4. Of equal scores the first
        client by name counts, the paper's smallest identifier. Differs from Flower in measuring
        distances between changes, in float64, which do not cancel; and in refusing fewer clients
        than the proof asks for.
    """
    refuse("krum", [whole("num_malicious", num_malicious)])

    def coefficients(products: Matrix, reports: Reports) -> list[float]:
        require_clients("krum", num_malicious, 2, len(reports))
        (best,) = closest(products, num_malicious, 1)
        return [float(position == best) for position in range(len(reports))]

    return Parts(Gram(coefficients))
