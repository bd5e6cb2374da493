"""Who takes part in a round of a simulation, who never answers, and who is slow."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from alloykit.federation.settings import Federation
from alloykit.training.order import derived_seed


def asked(
    clients: Sequence[str], settings: Federation, number: int, busy: Collection[str] = ()
) -> list[str]:
    """The clients that a round asks, sorted; it depends on the seed, the round and their names.

    Args:
        clients: All of them, in any order.
        settings: Fraction or number of clients, and the seed.
        number: Of the round, from 1.
        busy: Clients whose late update is still to come.

    Example:
        >>> asked(["a", "b", "c", "d"], Federation(fraction=0.5), 1)
        ['a', 'b']
    """
    free = sorted(set(clients) - set(busy))
    count = min(wanted(len(clients), settings), len(free))
    draw = random.Random(derived_seed(settings.seed, "clients", number))
    return sorted(draw.sample(free, count))


def wanted(clients: int, settings: Federation) -> int:
    """How many of so many clients a round asks, where none is busy."""
    return settings.clients_per_round or max(1, round(settings.fraction * clients))


def drops_out(settings: Federation, number: int, client: str) -> bool:
    """Whether a client that was asked never answers."""
    return _chance(settings, "drop-out", number, client) < settings.drop_out


def epochs_of(settings: Federation, number: int, client: str) -> int:
    """How many epochs a client trains: a slow one fewer, where its update must not be late."""
    epochs = settings.training.epochs
    if settings.delay or not _is_slow(settings, number, client):
        return epochs
    return 1 + int(_chance(settings, "epochs", number, client) * (epochs - 1))


def delay_of(settings: Federation, number: int, client: str) -> int:
    """How many rounds later a client's update comes; 0 for those in time."""
    if not settings.delay or not _is_slow(settings, number, client):
        return 0
    return 1 + int(_chance(settings, "delay", number, client) * settings.delay)


def _is_slow(settings: Federation, number: int, client: str) -> bool:
    return _chance(settings, "straggler", number, client) < settings.stragglers


def _chance(settings: Federation, what: str, number: int, client: str) -> float:
    """A number in [0, 1) that depends on all of this."""
    return random.Random(derived_seed(settings.seed, what, number, client)).random()
