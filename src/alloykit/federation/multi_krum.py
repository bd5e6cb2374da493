"""Multi-Krum: the mean of the clients that are closest to their neighbours."""

from __future__ import annotations

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Gram, Matrix, Parts, Reports, aggregator
from alloykit.federation.krum_scores import closest
from alloykit.federation.limits import refuse, require_clients, whole


@aggregator(
    formula="mean of the m clients with the least Σ over the n−f−2 nearest |clientᵢ − clientⱼ|²",
    paper="Blanchard et al., Machine learning with adversaries, 2017, arXiv:1703.02757.",
)
def multi_krum(num_malicious: int = 1, num_selected: int | None = None) -> Parts:
    """Average the m clients that are closest to their n − f − 2 nearest neighbours.

    new = mean of the m clientsᵢ with the least Σⱼ |clientᵢ − clientⱼ|², over the n − f − 2
    nearest j

    Use it when up to f clients may send anything at all: it uses most of the others, and hidden
    small changes are harder to stop than gross ones. All that it selects count the same, since a
    claimed number of examples could be a lie.

    Args:
        num_malicious: f, how many clients may be malicious, at least 0; the default is 1. With f
            there must be at least 2f + 3 clients in a round. Where there are fewer, f falls by
            as many as were left out for what they sent, at most.
        num_selected: m, how many are averaged, from 1 (``krum``) to n − f. None, the default,
            means n − f; the paper's proof holds up to n − f − 2.

    Raises:
        InvalidParameter: Numbers outside their ranges; in the round, fewer than 2f + 3 clients,
            or more than n − f to select.

    Example:
        >>> import numpy as np
        >>> from alloykit.federation.contract import Report
        >>> deltas = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
        >>> reports = [Report(name) for name in "abcde"]
        >>> multi_krum(num_malicious=1).rule(None).coefficients(deltas @ deltas.T, reports)
        [0.25, 0.25, 0.25, 0.25, 0.0]

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine
        tolerant gradient descent, 2017, arXiv:1703.02757, section 5. Differs from Flower as
        ``krum`` does, and in the equal weights of the paper.
    """
    refuse(
        "multi_krum",
        [
            whole("num_malicious", num_malicious),
            whole("num_selected", num_selected, 1) if num_selected is not None else None,
        ],
    )

    def coefficients(products: Matrix, reports: Reports) -> list[float]:
        count = len(reports)
        require_clients("multi_krum", num_malicious, 2, count)
        taken = selected(num_selected, num_malicious, count)
        chosen = set(closest(products, num_malicious, taken))
        return [1.0 / taken if position in chosen else 0.0 for position in range(count)]

    return Parts(Gram(coefficients))


def selected(wanted: int | None, num_malicious: int, count: int) -> int:
    """How many clients Multi-Krum averages.

    Raises:
        InvalidParameter: More than those that are not malicious.

    Example:
        >>> selected(None, 2, 10), selected(5, 2, 10)
        (8, 5)
    """
    most = count - num_malicious
    if wanted is not None and wanted > most:
        raise InvalidParameter(
            f"multi_krum cannot select {wanted} of {count} clients with "
            f"num_malicious={num_malicious}: at most {most} ({count} − {num_malicious}). "
            "Choose a smaller num_selected, or leave it out."
        )
    return most if wanted is None else wanted
