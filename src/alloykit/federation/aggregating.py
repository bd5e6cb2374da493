"""Updates of clients -> one model: the short form of a round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from alloykit.data.storage import MEMORY_LIMIT
from alloykit.federation.checks import Checks
from alloykit.federation.contract import Aggregator, ServerState
from alloykit.federation.round import Round
from alloykit.federation.update import Aggregated, Update


def aggregate_updates(
    server: Any,
    updates: Iterable[Update],
    aggregator: Aggregator,
    *,
    state: ServerState | None = None,
    checks: Checks | None = None,
    keep: Sequence[str] = (),
    memory_limit: int | None = None,
) -> Aggregated:
    """Combine the updates of one round; arguments and errors are those of ``Round``.

    Args:
        server: The model that the clients started from, or None.
        updates: A list is used where it lies; what comes one by one is copied, beyond
            ``memory_limit`` bytes to temporary files.
        aggregator: How to combine.
        state: What the server kept from the last round.
        checks: Which updates count.
        keep: Globs of tensors that are not aggregated.
        memory_limit: Bytes of updates that are kept in memory; by default no limit for a list.

    Example:
        >>> import torch
        >>> from alloykit.federation.fedavg import fedavg
        >>> one, other = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
        >>> updates = [Update("a", one), Update("b", other)]
        >>> aggregate_updates(None, updates, fedavg()).tensors["w"]
        tensor([2.])
    """
    limit = None if isinstance(updates, Sequence) else MEMORY_LIMIT
    round_ = Round(
        server,
        aggregator,
        state=state,
        checks=checks,
        keep=keep,
        memory_limit=limit if memory_limit is None else memory_limit,
    )
    for update in updates:
        round_.add(update)
    return round_.close()
