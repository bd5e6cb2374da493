"""The accountant: which epsilon the noise of all rounds together gives, and the way back."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from alloykit.errors import MissingExtra
from alloykit.federation.limits import not_negative, one_of, positive, refuse, whole
from alloykit.numerics import is_number

Accountant = Literal["rdp", "pld"]


def epsilon_of(
    noise_multiplier: float,
    *,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    accountant: Accountant = "rdp",
) -> float:
    """The epsilon of so many rounds with Gaussian noise: how much a client's part can show.

    Whatever is made of the models of all rounds, with or without one client's part, differs in
    probability by a factor of at most exp(epsilon), but for a probability of delta.

    Args:
        noise_multiplier: That of ``dp_fixed_clipping`` or ``dp_adaptive_clipping``; 0 gives
            infinity.
        rounds: How many, at least 0.
        delta: Above 0 and below 1; well below 1 / (number of clients).
        sampling_rate: Probability with which each client takes part in a round, of all others and
            of other rounds independently (Poisson sampling), in (0, 1]. A number of clients that
            is fixed in advance is not such a sample: leave it at 1, which counts everybody as
            present every time.
        accountant: "rdp" (Rényi divergences, the usual one), or "pld" (privacy loss
            distributions, tighter).

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
        MissingExtra: The package dp-accounting is not installed.

    Example:
        >>> round(epsilon_of(4.0, rounds=10_000, delta=1e-5, sampling_rate=0.01), 2)
        1.04

    References:
        The numbers are those of the package dp-accounting (Google): Mironov, Talwar and Zhang,
        Rényi differential privacy of the sampled Gaussian mechanism, 2019, arXiv:1908.10530;
        Koskela, Jälkö and Honkela, 2020, arXiv:1906.03049. Neighbouring data differ by one client
        added or removed.
    """
    refuse(
        "epsilon_of",
        [
            not_negative("noise_multiplier", noise_multiplier),
            *_limits(rounds, delta, sampling_rate, accountant),
        ],
    )
    composed = _accountant(accountant)
    if not rounds:
        return 0.0
    with _without_warnings():
        composed.compose(_event(noise_multiplier, rounds, sampling_rate))
        return float(composed.get_epsilon(delta))


def noise_multiplier_for(
    epsilon: float,
    *,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    accountant: Accountant = "rdp",
) -> float:
    """The smallest noise multiplier, to a millionth, that gives at most this epsilon.

    Args:
        epsilon: Above 0.
        rounds: As in ``epsilon_of``, but at least 1.
        delta: As in ``epsilon_of``.
        sampling_rate: As in ``epsilon_of``.
        accountant: As in ``epsilon_of``.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
        MissingExtra: The package dp-accounting is not installed.

    Example:
        >>> round(noise_multiplier_for(2.0, rounds=100, delta=1e-5, sampling_rate=0.1), 2)
        2.42
    """
    refuse(
        "noise_multiplier_for",
        [positive("epsilon", epsilon), *_limits(rounds, delta, sampling_rate, accountant, 1)],
    )
    with _without_warnings():
        found: float = _package().calibrate_dp_mechanism(
            lambda: _accountant(accountant),
            lambda noise: _event(noise, rounds, sampling_rate),
            epsilon,
            delta,
            tol=1e-6,
        )
    return found


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep the library from warning of orders of divergences that it leaves out.

    Any selection of orders gives an epsilon that holds.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _limits(
    rounds: int, delta: float, sampling_rate: float, accountant: str, least: int = 0
) -> list[str | None]:
    rate, share = is_number(sampling_rate), is_number(delta)
    return [
        whole("rounds", rounds, least),
        None
        if share and 0 < delta < 1
        else f"'delta' must be a number above 0 and below 1. Got {delta!r}.",
        None
        if rate and 0 < sampling_rate <= 1
        else f"'sampling_rate' must be a number above 0, at most 1. Got {sampling_rate!r}.",
        one_of("accountant", accountant, ("rdp", "pld")),
    ]


def _event(noise_multiplier: float, rounds: int, sampling_rate: float) -> Any:
    package = _package()
    event = package.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1.0:
        event = package.PoissonSampledDpEvent(sampling_rate, event)
    return package.SelfComposedDpEvent(event, rounds)


def _accountant(name: Accountant) -> Any:
    package = _package()
    return package.rdp.RdpAccountant() if name == "rdp" else package.pld.PLDAccountant()


def _package() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError as error:
        raise MissingExtra(
            "The privacy accountant needs the package dp-accounting, which is not installed. "
            "Install it with: pip install 'alloykit[privacy]'"
        ) from error
