"""RFA: the geometric median of the clients' whole models."""

from __future__ import annotations

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Gram, Matrix, Parts, Reports, aggregator
from alloykit.merging.geometric_median import median_coefficients


@aggregator(
    formula="argmin over y of Σ wᵢ·|y − clientᵢ|",
    paper="Pillutla, Kakade and Harchaoui, Robust aggregation, 2019, arXiv:1912.13445.",
)
def rfa(weighted: bool = False) -> Parts:
    """Take the point with the least sum of distances to the clients, whole models as points.

    new = argmin over y of Σ wᵢ · |y − clientᵢ|, with wᵢ = 1/n, or nᵢ / Σ nⱼ where weighted

    Use it when less than half of the clients may be broken or hostile and nobody knows how many:
    it has no such number to set, and where all are honest it is close to the mean.

    Args:
        weighted: Whether clients count by their number of examples, as in the paper. The default
            counts all the same, so that a claimed number cannot make a minority a majority.

    Raises:
        InvalidParameter: weighted is not True or False.

    Example:
        >>> import numpy as np
        >>> from alloykit.federation.contract import Report
        >>> deltas = np.array([[0.0], [1.0], [100.0]])
        >>> reports = [Report("a"), Report("b"), Report("c")]
        >>> rfa().rule(None).coefficients(deltas @ deltas.T, reports)
        (0.0, 1.0, 0.0)

    References:
        Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning, 2019,
        arXiv:1912.13445, algorithm 1. Differs in the equal weights, and from the authors' code in
        going on to the minimum instead of a few smoothed steps (see ``geometric_median``).
    """
    if not isinstance(weighted, bool):
        raise InvalidParameter(
            f"The 'weighted' parameter of rfa must be True or False. Got {weighted!r}."
        )

    def coefficients(products: Matrix, reports: Reports) -> tuple[float, ...]:
        weights = [report.num_examples if weighted else 1.0 for report in reports]
        total = sum(weights)
        return median_coefficients(products, [weight / total for weight in weights])

    return Parts(Gram(coefficients), asks=frozenset({"num_examples"}) if weighted else frozenset())
