"""Differential privacy on the server, with a clip norm that follows a quantile of the changes."""

from __future__ import annotations

import math

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Given, Parts, Reports, ServerState, Sum, aggregator
from alloykit.federation.dp_fixed_clipping import equal_and_clipped, limits_of_noise
from alloykit.federation.limits import known, not_negative, positive, quantile, refuse
from alloykit.federation.noise import COUNT, gaussian, noise_step

CLIP_NORM = "clip_norm"
"""Name of the number that the server's state keeps."""


@aggregator(
    asks=frozenset({"norm", "server"}),
    formula="as dp_fixed_clipping, with C ← C·exp(−η·(share of |Δᵢ| ≤ C, with noise, − γ))",
    paper="Andrew et al., Private learning with adaptive clipping, 2021, arXiv:1905.03871.",
)
def dp_adaptive_clipping(
    noise_multiplier: float,
    *,
    initial_clip_norm: float = 0.1,
    target_quantile: float = 0.5,
    clip_learning_rate: float = 0.2,
    count_deviation: float | None = None,
    clients_per_round: float | None = None,
    seed: int | None = None,
) -> Parts:
    """Clip and add noise as ``dp_fixed_clipping`` does, at a length that is learned in private.

    new = server + (Σ min(1, C / |Δᵢ|) · Δᵢ + noise of z_Δ · C) / m; then
    C = C · exp(−clip_learning_rate · (b − target_quantile)), where b is the share of clients with
    |Δᵢ| ≤ C, plus noise; z_Δ = (noise_multiplier⁻² − (2 · count_deviation)⁻²)^(−1/2)

    Use it when nobody knows how long the clients' changes are, or when they grow shorter. A part
    of the privacy goes to the count, and the noise on the sum is larger for it (z_Δ): together
    both give the privacy of noise_multiplier, which is what ``privacy`` takes.

    Args:
        noise_multiplier: Of the round as a whole, at least 0; 0 adds no noise anywhere.
        initial_clip_norm: C in the first round, above 0; 0.1 in the paper. It finds its way from
            any value, by a factor of at most exp(clip_learning_rate) a round.
        target_quantile: Share of clients that are not cut, in [0, 1]. The default 0.5 follows the
            median, the paper's choice.
        clip_learning_rate: How fast C moves, above 0; 0.2 in the paper.
        count_deviation: Standard deviation of the noise on the number of clients that are not
            cut, above half of noise_multiplier. None, the default, means m / 20, as in the paper.
        clients_per_round: m, as in ``dp_fixed_clipping``.
        seed: As in ``dp_fixed_clipping``.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed; count_deviation, or m / 20,
            too small for noise_multiplier, which with m None shows in the round.

    Example:
        >>> from alloykit.federation.contract import Report, ServerState
        >>> reports = [Report("a", norm=0.5), Report("b", norm=4.0), Report("c", norm=2.0)]
        >>> made = dp_adaptive_clipping(0.0, initial_clip_norm=1.0)
        >>> made.rule(ServerState()).coefficients(reports)[1] * 3
        0.25
        >>> made.numbers(ServerState(), reports)  # two of three were cut: the clip norm grows
        {'clip_norm': 1.033895113513574}

    References:
        Andrew, Thakkar, McMahan and Ramaswamy, Differentially private learning with adaptive
        clipping, 2021, arXiv:1905.03871, algorithm 1 and theorem 1. Differs from Flower, which
        counts the clients that were cut but moves the norm as if they were not, and so moves it
        away from the quantile; whose noise is that of the next round's norm; and which lets
        clients count by their examples.
    """
    refuse(
        "dp_adaptive_clipping",
        [
            not_negative("noise_multiplier", noise_multiplier),
            positive("initial_clip_norm", initial_clip_norm),
            quantile("target_quantile", target_quantile),
            positive("clip_learning_rate", clip_learning_rate),
            positive("count_deviation", count_deviation) if count_deviation is not None else None,
            *limits_of_noise(clients_per_round, seed),
        ],
    )
    if clients_per_round is not None or count_deviation is not None:
        noise_shares(noise_multiplier, count_deviation, clients_per_round or 1)

    def clip_norm(now: ServerState | Given) -> float:
        return now.numbers.get(CLIP_NORM, initial_clip_norm)

    def rule(state: ServerState) -> Sum:
        return equal_and_clipped("dp_adaptive_clipping", clip_norm(state), clients_per_round)

    def deviation(given: Given) -> float:
        divisor = clients_per_round or given.clients
        of_sum, _ = noise_shares(noise_multiplier, count_deviation, divisor)
        return of_sum * clip_norm(given) / divisor

    def numbers(state: ServerState, reports: Reports) -> dict[str, float]:
        divisor = clients_per_round or len(reports)
        _, of_count = noise_shares(noise_multiplier, count_deviation, divisor)
        now, count = clip_norm(state), 0.0
        for report in reports:
            count += known(report.norm, "norm", report.client, "dp_adaptive_clipping") <= now
        if of_count:
            count += gaussian(of_count, seed, state.round + 1, COUNT)
        return {CLIP_NORM: moved_norm(now, count / divisor, target_quantile, clip_learning_rate)}

    return Parts(rule, step=noise_step(deviation, seed), numbers=numbers, private=True)


def moved_norm(clip_norm: float, share: float, target: float, learning_rate: float) -> float:
    """The clip norm of the next round: larger where fewer than the target were left whole.

    Args:
        clip_norm: Of this round.
        share: Part of the clients whose changes were no longer than it.
        target: What that part should be.
        learning_rate: How fast.

    Example:
        >>> moved_norm(1.0, 0.25, 0.5, 0.2) > 1.0 > moved_norm(1.0, 0.75, 0.5, 0.2)
        True
    """
    return clip_norm * math.exp(-learning_rate * (share - target))


def noise_shares(
    noise_multiplier: float, count_deviation: float | None, clients: float
) -> tuple[float, float]:
    """The noise multiplier of the sum, and the standard deviation of the noise on the count.

    Args:
        noise_multiplier: That both together stand for.
        count_deviation: Of the count; None means a twentieth of the clients.
        clients: In a round.

    Raises:
        InvalidParameter: The noise on the count alone tells more than is allowed.

    Example:
        >>> noise_shares(1.0, None, 100)[1]
        5.0
    """
    if not noise_multiplier:
        return 0.0, 0.0
    deviation = clients / 20 if count_deviation is None else count_deviation
    if 2.0 * deviation <= noise_multiplier:
        whence = f"{clients:g} clients / 20" if count_deviation is None else "count_deviation"
        raise InvalidParameter(
            f"dp_adaptive_clipping cannot reach noise_multiplier={noise_multiplier:g} with noise "
            f"of {deviation:g} on the count ({whence}): it must be above {noise_multiplier / 2:g}. "
            "Give a larger count_deviation, or let more clients take part."
        )
    left: float = (noise_multiplier**-2 - (2.0 * deviation) ** -2) ** -0.5
    return left, deviation
