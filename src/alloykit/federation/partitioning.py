"""Examples dealt out to simulated clients: evenly, skewed by label, or in shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import DataError, InvalidParameter, listing
from alloykit.numerics import is_number, is_whole

MOST_DRAWS = 1000
"""Draws of skewed partitions before an error says that they will not come out large enough."""


def iid(labels: Tensor, clients: int, seed: int = 0, *, least: int = 1) -> list[Tensor]:
    """Deal the examples out at random; numbers of examples differ by at most one.

    Use it as the easy case that every other partition is measured against.

    Args:
        labels: One per example; what they are does not matter here.
        clients: Number of clients, at least 1.
        seed: Of the order of dealing, at least 0.
        least: Examples that every client must have.

    Shapes:
        labels [example, ...] -> positions [example of the client] of each client, ascending

    Raises:
        DataError: Fewer examples than ``clients * least``.

    Example:
        >>> [len(rows) for rows in iid(torch.zeros(7), 3)]
        [3, 2, 2]
    """
    _check(labels, clients, seed, least)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [_sorted(rows) for rows in np.array_split(order, clients)]


def dirichlet(
    labels: Tensor, clients: int, seed: int = 0, *, concentration: float = 0.3, least: int = 1
) -> list[Tensor]:
    """Spread every class over the clients by a Dirichlet draw of its own.

    share of client k in class c ~ Dirichlet(concentration, ..., concentration)

    Use it for clients that have other mixes of classes and other numbers of examples. Draws are
    repeated until every client has its least number of examples.

    Args:
        labels: Class of each example.
        clients: Number of clients, at least 1.
        seed: Of the draws, at least 0.
        concentration: Above 0. At 0.1 most clients have a class or two, at 0.3 a few, at 1 all in
            unequal shares; at 100 partitions are nearly alike.
        least: Examples that every client must have.

    Shapes:
        labels [example] -> positions [example of the client] of each client, ascending

    Raises:
        DataError: Fewer examples than ``clients * least``, or 1,000 draws in which some client had
            too few.

    Example:
        >>> labels = torch.arange(300) % 3
        >>> parts = dirichlet(labels, 4, concentration=0.3, least=5)
        >>> sorted(torch.cat(parts).tolist()) == list(range(300))
        True

    References:
        Li, Diao, Chen and He, Federated learning on non-IID data silos, 2022, arXiv:2102.02079,
        section IV: one draw a class. Hsu, Qi and Brown, 2019, arXiv:1909.06335, draw one mix of
        classes for each client instead.
    """
    _check(labels, clients, seed, least, classes=True)
    if not is_number(concentration) or not 0 < concentration < math.inf:
        raise InvalidParameter(f"'concentration' must be above 0. Got {concentration!r}.")
    random, known = np.random.default_rng(seed), labels.numpy(force=True)
    smallest = 0
    for _ in range(MOST_DRAWS):
        parts = _one_draw(known, clients, concentration, random)
        if min(map(len, parts)) >= least:
            return [_sorted(part) for part in parts]
        smallest = max(smallest, min(map(len, parts)))
    raise DataError(
        f"In {MOST_DRAWS:,} draws with concentration {concentration:g}, {len(labels)} examples "
        f"never gave each of {clients} clients at least {least}: the smallest had {smallest} at "
        "most. Take a larger concentration, fewer clients or a smaller least number."
    )


def shards(
    labels: Tensor, clients: int, seed: int = 0, *, per_client: int = 2, least: int = 1
) -> list[Tensor]:
    """Sort the examples by label, cut them into equal shards, deal some to each client.

    Use it for clients that know a few classes only: with 2 shards most see two.

    Args:
        labels: Class, or value, of each example.
        clients: Number of clients, at least 1.
        seed: Of the dealing, at least 0.
        per_client: Shards for each client, at least 1.
        least: Examples that every client must have.

    Shapes:
        labels [example] -> positions [example of the client] of each client, ascending

    Raises:
        DataError: Fewer examples than ``clients * least``, or than shards.

    Example:
        >>> labels = torch.tensor([1, 0, 1, 0, 2, 2])
        >>> [sorted(labels[rows].tolist()) for rows in shards(labels, 3, per_client=1)]
        [[2, 2], [0, 0], [1, 1]]

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data,
        2017, arXiv:1602.05629, section 3: 200 shards of 300 digits, 2 for each of 100 clients.
    """
    _check(labels, clients, seed, least, classes=True)
    if not is_whole(per_client) or per_client < 1:
        raise InvalidParameter(f"'per_client' must be at least 1. Got {per_client!r}.")
    if len(labels) < clients * per_client:
        raise DataError(
            f"{len(labels)} examples cannot be cut into {clients} x {per_client} shards. Take "
            "fewer clients, or fewer shards for each."
        )
    order = np.argsort(labels.numpy(force=True), kind="stable")
    cut = np.array_split(order, clients * per_client)
    dealt = np.random.default_rng(seed).permutation(len(cut)).reshape(clients, per_client)
    parts = [np.concatenate([cut[shard] for shard in mine]) for mine in dealt]
    if min(map(len, parts)) < least:
        raise DataError(
            f"Shards of {len(labels) // len(cut)} examples give a client "
            f"{min(map(len, parts))}, and {least} were asked for. Take fewer clients."
        )
    return [_sorted(part) for part in parts]


PARTITIONS: Mapping[str, Callable[..., list[Tensor]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
}
"""The ways of dealing examples out, by name."""


def _one_draw(
    labels: np.ndarray[Any, Any], clients: int, concentration: float, random: np.random.Generator
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels).tolist():
        members = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet([concentration] * clients)
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, chosen in zip(rows, np.split(members, cuts), strict=True):
            part.extend(chosen.tolist())
    return rows


def _sorted(rows: Any) -> Tensor:
    return torch.tensor(sorted(int(row) for row in rows), dtype=torch.long)


def _check(labels: Any, clients: Any, seed: Any, least: Any, *, classes: bool = False) -> None:
    wrong = []
    if not isinstance(labels, Tensor) or labels.dim() == 0:
        wrong.append("'labels' must be a tensor with one label per example")
    elif classes and labels.dim() != 1:
        wrong.append(
            f"'labels' must be one label per example, [example]. Got {list(labels.shape)}: deal "
            "such data out with iid"
        )
    for name, value, lowest in (("clients", clients, 1), ("seed", seed, 0), ("least", least, 1)):
        if not is_whole(value) or value < lowest:
            wrong.append(f"{name!r} must be a whole number of at least {lowest}. Got {value!r}")
    if wrong:
        raise InvalidParameter(f"Examples cannot be dealt out so:\n{listing(wrong)}")
    if len(labels) < clients * least:
        raise DataError(
            f"{len(labels)} examples are too few for {clients} clients with at least {least} each. "
            "Take fewer clients, or more data."
        )
