"""Differential privacy on the server: clients' changes cut to a length, and noise on their mean."""

from __future__ import annotations

from alloykit.errors import InvalidParameter
from alloykit.federation.clipping import clipped
from alloykit.federation.contract import Given, Parts, Reports, Sum, aggregator
from alloykit.federation.limits import not_negative, positive, refuse, whole
from alloykit.federation.noise import noise_step


@aggregator(
    asks=frozenset({"norm", "server"}),
    formula="server + (Σ min(1, C/|Δᵢ|)·Δᵢ + N(0, (z·C)²)) / n,  Δᵢ = clientᵢ − server",
    paper="McMahan et al., Learning differentially private language models, arXiv:1710.06963.",
)
def dp_fixed_clipping(
    clip_norm: float,
    noise_multiplier: float,
    *,
    clients_per_round: float | None = None,
    seed: int | None = None,
) -> Parts:
    """Average the clients' changes, cut to a length, with noise that hides each client's part.

    new = server + (Σ min(1, clip_norm / |Δᵢ|) · Δᵢ + noise) / m, with Δᵢ = clientᵢ − server and
    noise of the standard deviation noise_multiplier · clip_norm on every element

    Use it when nobody who sees the models of all rounds may tell whether a client took part. It
    needs many clients: the noise on the mean is noise_multiplier · clip_norm / m. ``privacy``
    says which epsilon follows, and which noise multiplier an epsilon needs.

    All clients count the same, whatever number of examples they claim: otherwise one client could
    move the sum by more than clip_norm, and the noise would not hide it. Noise is added to every
    floating tensor, statistics of BatchNorm included. Whole numbers are resolved without noise,
    and the round's record holds true norms: neither is private. No client may decide whether
    another one counts, so that limits of ``Checks`` that compare clients do not apply.

    Args:
        clip_norm: Longest change that counts in full, a 2-norm over all averaged tensors together,
            above 0; infinity only without noise.
        noise_multiplier: Noise on the sum, in units of clip_norm, at least 0. About 1 is usual.
            0 adds none, and gives no privacy.
        clients_per_round: m, what the sum is divided by, above 0. Where each client takes part
            with a probability of its own, give the expected number: dividing by the number that
            came would tell it, and it is made from who took part. None divides by the number of
            clients that count, for rounds of a number fixed in advance.
        seed: Of the noise: None draws it from the operating system, so that nothing repeats. With
            a seed a round that is run again ends in the same bits. Keep it as secret as the data:
            who knows it can take the noise off, and it stands wherever the aggregator's parameters
            are written. Never use one for two runs. At least 0; choose it with
            ``secrets.randbits(64)``.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> reports = [Report("a", num_examples=900, norm=0.5), Report("b", norm=4.0)]
        >>> dp_fixed_clipping(clip_norm=1.0, noise_multiplier=1.0).rule(None).coefficients(reports)
        [0.5, 0.125]

    References:
        McMahan, Ramage, Talwar and Zhang, Learning differentially private recurrent language
        models, 2018, arXiv:1710.06963, algorithm 1 with equal weights and the fixed-denominator
        estimator; Geyer, Klein and Nabi, 2017, arXiv:1712.07557. Differs from Flower in the equal
        weights, and in what it does with changes of length zero. The noise is drawn in floating
        point, without the defences of Mironov, On significance of the least significant bits,
        CCS 2012.
    """
    refuse(
        "dp_fixed_clipping",
        [
            positive("clip_norm", clip_norm, infinite=True),
            not_negative("noise_multiplier", noise_multiplier),
            *limits_of_noise(clients_per_round, seed),
        ],
    )
    if noise_multiplier and clip_norm == float("inf"):
        raise InvalidParameter(
            "dp_fixed_clipping cannot add noise in units of an infinite clip_norm. Give a finite "
            "clip_norm, or noise_multiplier=0."
        )

    def deviation(given: Given) -> float:
        if not noise_multiplier:
            return 0.0
        return noise_multiplier * clip_norm / (clients_per_round or given.clients)

    return Parts(
        equal_and_clipped("dp_fixed_clipping", clip_norm, clients_per_round),
        step=noise_step(deviation, seed),
        private=True,
    )


def equal_and_clipped(method: str, clip_norm: float, clients_per_round: float | None) -> Sum:
    """The sum of clipped changes over the number of clients, that which came or that expected."""

    def divisor(reports: Reports) -> float:
        return clients_per_round or len(reports)

    return Sum(factor=lambda report: clipped(report, clip_norm, method), divisor=divisor)


def limits_of_noise(clients_per_round: float | None, seed: int | None) -> list[str | None]:
    """What is wrong with the parameters that both ways of clipping share."""
    return [
        positive("clients_per_round", clients_per_round) if clients_per_round is not None else None,
        whole("seed", seed) if seed is not None else None,
    ]
