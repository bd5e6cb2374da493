"""The replies of one round, as they come in: what counts, what does not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alloykit.checkpoints.wording import counted
from alloykit.errors import LISTED, AlloyError, CheckpointError
from alloykit.federation.round import Round
from alloykit.federation.update import LeftOut, RoundRecord, Update
from alloykit.plugins.flower_api import Message
from alloykit.plugins.flower_replies import (
    Keys,
    averaged_metrics,
    client_of,
    metrics_of,
    update_of,
)
from alloykit.plugins.flower_waiting import Replies, failure, in_one_line
from alloykit.types import TensorSpec


class Intake:
    """Takes the replies of one round, whatever they hold.

    Args:
        round: Where updates go.
        server: The server's tensors; empty where they are not known.
        keys: What things are called in replies.
        asked: The nodes that were asked; None where that is not known.
        names: Node -> client, from this round and earlier ones; nodes of this round are added.

    Attributes:
        round: Where updates go.
        taken: Number of updates that may count.
        left: The clients that do not count.
    """

    def __init__(
        self,
        round: Round,
        server: Mapping[str, TensorSpec],
        keys: Keys,
        asked: set[int] | None,
        names: dict[int, str],
    ) -> None:
        self.round = round
        self.taken = 0
        self.left: list[LeftOut] = []
        self._server, self._keys = server, keys
        self._asked, self._names = asked, names
        self._answered: set[int] = set()
        self._metrics: dict[str, Mapping[str, Any]] = {}

    def take(self, reply: Message) -> bool:
        """Take a reply; whether it may count.

        Raises:
            DataError: It cannot be used, and the checks say that this ends the round.
        """
        node = reply.metadata.src_node_id
        try:
            update, metrics = self._read(reply, node)
        except Exception as error:
            # A client may send anything; what breaks here is its own.
            self.leave_out(node, in_one_line(error))
            return False
        try:
            reason = self.round.add(update)
        except AlloyError:
            raise
        except Exception as error:
            self.leave_out(node, in_one_line(error))
            return False
        if reason:
            self.left.append(LeftOut(update.client, reason))
            return False
        self._metrics[update.client] = metrics
        self.taken += 1
        return True

    def leave_out(self, node: int, reason: str) -> None:
        """Note that a node's client does not count."""
        client = self._names.get(node, f"node {node}")
        self.left.append(LeftOut(client, reason))
        self.round.leave_out(client, reason)

    def miss(self, replies: Replies, late: str) -> None:
        """Note the clients that failed, and those that did not answer in time."""
        for node, reason in sorted(replies.failed.items()):
            self.leave_out(node, reason)
        for node in sorted(replies.waiting.values()):
            self.leave_out(node, late)

    def results(self, clients: Sequence[str]) -> dict[str, float | list[float]]:
        """The results of these clients, averaged by examples where all of them give a number."""
        reports = [self._metrics[client] for client in clients]
        said = all(self._keys.num_examples in metrics for metrics in reports)
        weighted = [
            (float(metrics[self._keys.num_examples]) if said else 1.0, metrics)
            for metrics in reports
        ]
        return averaged_metrics(weighted, self._keys.numbers())

    def _read(self, reply: Message, node: int) -> tuple[Update, Mapping[str, Any]]:
        if reply.has_error():
            raise CheckpointError(failure(reply))
        if self._asked is not None and node not in self._asked:
            raise CheckpointError("it was not asked")
        if node in self._answered:
            raise CheckpointError("it sent a second reply in this round")
        metrics = metrics_of(reply)
        client = client_of(reply, metrics, self._keys, f"node {node}")
        if owner := self._owner(client, node):
            raise CheckpointError(f"node {node} calls itself {client}, as node {owner} does")
        self._answered.add(node)
        self._names[node] = client
        return update_of(reply, metrics, client, self._keys, self._server), metrics

    def _owner(self, client: str, node: int) -> int | None:
        """Another node of this round that has that name."""
        others = (n for n, name in self._names.items() if name == client and n != node)
        return next((n for n in others if self._asked is None or n in self._asked), None)


def in_words(record: RoundRecord) -> str:
    """What happened in a round, in one line.

    Example:
        >>> from alloykit.federation.update import Counted
        >>> in_words(RoundRecord(1, "median", (Counted("0"), Counted("2")), (LeftOut("1", "NaN"),)))
        'median of 2 clients (0, 2); without 1 (NaN)'
    """
    count = counted(len(record.counted), "client")
    done = f"{record.method} of {count} ({_some([each.client for each in record.counted])})"
    if record.kept_server:
        done = f"the model stays as it is: {record.kept_server}"
    without = _some([f"{each.client} ({each.reason})" for each in record.left_out])
    return f"{done}; without {without}" if without else done


def _some(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - LISTED} more"] if len(texts) > LISTED else []
    return ", ".join([*texts[:LISTED], *more])
