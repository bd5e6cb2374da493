"""Centred clipping: the mean, with each client cut to a length around the mean itself."""

from __future__ import annotations

import numpy as np

from alloykit.federation.clipping import kept_fraction
from alloykit.federation.contract import Gram, Matrix, Parts, Reports, aggregator
from alloykit.federation.limits import positive, refuse, whole


@aggregator(
    asks=frozenset({"server"}),
    formula="v ← v + mean of (clientᵢ − v)·min(1, τ/|clientᵢ − v|),  from the server's model",
    paper="Karimireddy, He and Jaggi, Learning from history, 2021, arXiv:2012.10333.",
)
def centred_clipping(clip_norm: float, iterations: int = 1) -> Parts:
    """Average the clients, each cut to a length around a centre that starts at the server's model.

    v = server; then ``iterations`` times v = v + 1/n · Σ (clientᵢ − v) · min(1, clip_norm /
    |clientᵢ − v|); new = v

    Use it when a minority may send anything at all and the honest clients agree about where to go
    from the server's model. No client moves the model by more than clip_norm / n in an iteration.

    Args:
        clip_norm: How far from the centre a client counts in full, above 0; a 2-norm over all
            averaged tensors together. About the distance between honest clients.
        iterations: At least 1, the authors' choice. More of them come closer to the clients when
            they are far from the server.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> deltas = np.array([[0.5], [1.0], [100.0]])
        >>> reports = [Report("a"), Report("b"), Report("c")]
        >>> rule = centred_clipping(clip_norm=1.0).rule(None)
        >>> [round(each, 4) for each in rule.coefficients(deltas @ deltas.T, reports)]
        [0.3333, 0.3333, 0.0033]

    References:
        Karimireddy, He and Jaggi, Learning from history for Byzantine robust optimization, 2021,
        arXiv:2012.10333, section 4. Differs in leaving momentum to the clients, whose models are
        what is clipped here: the server's model is the centre that the paper takes from the round
        before.
    """
    refuse(
        "centred_clipping", [positive("clip_norm", clip_norm), whole("iterations", iterations, 1)]
    )

    def coefficients(products: Matrix, _: Reports) -> list[float]:
        return centred_coefficients(products, clip_norm, iterations)

    return Parts(Gram(coefficients))


def centred_coefficients(products: Matrix, clip_norm: float, iterations: int) -> list[float]:
    """The centre as a sum of deltas, after so many iterations from the server's model.

    Args:
        products: Inner products of the deltas.
        clip_norm: Longest way of a client to the centre that counts in full.
        iterations: How often the centre moves.

    Shapes:
        products [client, client] -> [client]
    """
    count = len(products)
    place = np.zeros(count)
    for _ in range(iterations):
        way = np.eye(count) - place
        squares = np.einsum("ik,kl,il->i", way, products, way, optimize=True)
        distances = np.sqrt(np.maximum(squares, 0.0))
        steps = np.array([kept_fraction(each, clip_norm) for each in distances]) / count
        place = place * (1.0 - steps.sum()) + steps
    return [float(each) for each in place]
