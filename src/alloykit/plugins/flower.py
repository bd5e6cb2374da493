"""Any aggregator inside a Flower app: a strategy that checks replies as they arrive."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import AlloyError, InvalidParameter, listing
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator, ServerState
from alloykit.federation.controls import SLOT
from alloykit.federation.round import Round
from alloykit.federation.update import Aggregated, RoundRecord
from alloykit.numerics import is_number, is_whole
from alloykit.plugins.flower_api import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    Result,
    Strategy,
)
from alloykit.plugins.flower_arrays import from_arrays, to_arrays
from alloykit.plugins.flower_evaluation import evaluated
from alloykit.plugins.flower_intake import Intake, in_words
from alloykit.plugins.flower_replies import Keys, to_reply
from alloykit.plugins.flower_waiting import ArrivingGrid, Replies, available

__all__ = ["AlloyStrategy", "Keys", "from_arrays", "to_arrays", "to_reply"]

TINY = 1e-9

log = logging.getLogger("flwr")


class AlloyStrategy(Strategy):
    """Aggregate the clients of a Flower app by any of alloykit's aggregators.

    Each reply is checked when it arrives. One that cannot be used is left out, and the record of
    the round says why; it never ends the run. A round ends when all sampled clients have answered,
    when ``enough`` updates count, or at the deadline; with fewer than ``quorum`` updates the
    server's model stays as it is. The order in which replies come does not show in the model, so
    that Flower's simulation, real machines and alloykit's own simulation end in the same bits.

    Use it in place of Flower's ``FedAvg``, ``FedAdam``, ``Krum`` and so on. Clients answer with
    ``to_reply``, or with an ``ArrayRecord`` and a ``MetricRecord`` as Flower's own strategies want.

    Args:
        aggregator: A name from ``alloykit methods``, or an ``Aggregator``.
        parameters: The aggregator's parameters, with a name.
        checks: Which updates count.
        keep: Globs of tensors that are not aggregated: the server's stay as they are.
        deadline: Seconds that the replies of a round are waited for, above 0; None takes the
            ``timeout`` of ``start`` (Flower's default is an hour). The first round of a simulation
            also has to start Ray and torch: leave a minute for that.
        quorum: Fewest clients of a round, and fewest updates that count, at least 1.
        enough: Updates that end a round before all clients have answered; None waits for all.
            Which clients were quick then decides about the model.
        fraction_train: Part of the connected nodes that train in a round, in [0, 1].
        fraction_evaluate: Part of them that evaluate; 0 skips evaluation.
        min_train_nodes: Nodes that train even if the fraction gives fewer.
        min_available_nodes: Nodes that have to be connected before a round begins.
        node_wait: Seconds that a round waits for these, at least 0; the first one waits up to the
            deadline, since machines may still be starting. Then it begins with those that there
            are, or, if they are fewer than the quorum, is skipped. Nodes that did not come are not
            waited for again.
        keys: What things are called in messages.
        state: What the server kept from an earlier run: its ``strategy.state``. Rounds are numbered
            from there, also in what clients are told, so that a run in two parts ends in the same
            model as one without a break.
        seed: Of the choice of nodes. Their numbers differ from run to run, so that a fraction
            below 1 chooses other clients in another run.

    Attributes:
        records: One ``RoundRecord`` for each round.
        state: What the server keeps for the next round.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
        UnknownName: There is no such aggregator.

    Example:
        >>> strategy = AlloyStrategy("trimmed_mean", {"trim": 0.2}, quorum=3, deadline=600)
        >>> strategy.aggregator.needs
        'blocks'
    """

    def __init__(
        self,
        aggregator: str | Aggregator = "fedavg",
        parameters: Mapping[str, Any] | None = None,
        *,
        checks: Checks | None = None,
        keep: Sequence[str] = (),
        deadline: float | None = None,
        quorum: int = 1,
        enough: int | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_available_nodes: int = 2,
        node_wait: float = 60.0,
        keys: Keys | None = None,
        state: ServerState | None = None,
        seed: int = 0,
    ) -> None:
        limits = checks or Checks()
        self.aggregator = as_aggregator(aggregator, parameters)
        self.deadline, self.quorum, self.enough = deadline, quorum, enough
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes, self.min_available_nodes = min_train_nodes, min_available_nodes
        self.node_wait, self.seed = node_wait, seed
        if wrong := _mistakes(self):
            raise InvalidParameter(f"Rounds cannot go by these settings:\n{listing(wrong)}")
        self.checks = dataclasses.replace(limits, min_clients=max(limits.min_clients, quorum))
        self.keep = (keep,) if isinstance(keep, str) else tuple(keep)
        self.keys = keys or Keys()
        self.state = state or ServerState()
        self.records: list[RoundRecord] = []
        self._server: ArrayRecord | None = None
        self._asked: set[int] | None = None
        self._names: dict[int, str] = {}
        self._within_reach: int = sys.maxsize
        self._patience = 0.0 if deadline is None else deadline

    def summary(self) -> None:
        """Log how rounds go."""
        log.info("\t├── Aggregator: %s %s", self.aggregator.name, dict(self.aggregator.parameters))
        limit = "that of start" if self.deadline is None else f"{self.deadline:g} s"
        log.info("\t├── Deadline: %s; quorum: %d", limit, self.quorum)
        log.info("\t└── %s", self.checks)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run rounds as Flower's strategies do; replies are taken as they arrive.

        Args:
            grid: Flower's connection.
            initial_arrays: The first model: ``to_arrays(model)``.
            num_rounds: Rounds, at least 0.
            timeout: Seconds that replies are waited for where the strategy has no deadline.
            train_config: Settings for the clients' training.
            evaluate_config: Settings for their evaluation.
            evaluate_fn: ``(round, arrays) -> metrics`` on the server, before the first round and
                after each.

        Returns:
            Flower's result; ``arrays`` is the last model, also where no round gave a new one.
        """
        self._patience = timeout if self.deadline is None else self.deadline
        result = super().start(
            ArrivingGrid(grid, self.deadline),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to the clients that train in this round."""
        self._server = arrays
        self._asked = set()
        number = self.state.round + 1
        if self.fraction_train == 0:
            return []
        nodes = self._connected(grid)
        if len(nodes) < self.quorum:
            log.warning(
                "round %d: %d nodes of a quorum of %d", server_round, len(nodes), self.quorum
            )
            return []
        least = max(self.min_train_nodes, self.quorum)
        chosen = self._sample(nodes, self.fraction_train, least, f"train {number}")
        self._asked = set(chosen)
        records: dict[str, ArrayRecord | ConfigRecord] = self._content(number, arrays, config)
        if self.aggregator.control is not None and SLOT in self.state.tensors:
            records[self.keys.control] = to_arrays(self.state.tensors[SLOT])
        return _messages(records, chosen, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies of a round one by one, and combine those that count.

        Args:
            server_round: Number of the round in this run.
            replies: As they arrive, or all in a list.

        Returns:
            The new model, or None where the server's is kept; and the clients' results, averaged
            by examples over the clients that count.

        Raises:
            DataError: An update cannot be used, and the checks say that this ends the round.
        """
        intake = self._intake()
        for reply in replies:
            if intake.take(reply) and intake.taken == self.enough:
                break
        if isinstance(replies, Replies):
            late = "it had not answered when enough others had"
            if intake.taken != self.enough:
                late = "it did not answer before the deadline"
            intake.miss(replies, late)
        found = self._closed(intake)
        self.state = found.state
        self.records.append(found.record)
        log.info("round %d: %s", found.record.round, in_words(found.record))
        if found.record.kept_server:
            return None, None
        results = intake.results([each.client for each in found.record.counted])
        return to_arrays(found.tensors), MetricRecord(results) if results else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to the clients that evaluate the model; nodes are not waited for."""
        if self.fraction_evaluate == 0:
            return []
        nodes = available(grid, 0, 0.0)
        chosen = self._sample(nodes, self.fraction_evaluate, 1, f"evaluate {self.state.round}")
        return _messages(
            self._content(self.state.round, arrays, config), chosen, MessageType.EVALUATE
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The clients' results, averaged by examples; a reply that cannot be used is logged."""
        found, wrong = evaluated(replies, self.keys, self.checks)
        if wrong:
            log.info("round %d: evaluation without %s", self.state.round, ", ".join(wrong))
        return MetricRecord(found) if found else None

    def _connected(self, grid: Grid) -> list[int]:
        """The nodes of a round; those that an earlier round waited for in vain do not count."""
        wanted = max(self.min_available_nodes, self.min_train_nodes, self.quorum)
        wanted = max(self.quorum, min(wanted, self._within_reach))
        seconds = self.node_wait if self.records else max(self.node_wait, self._patience)
        nodes = available(grid, wanted, seconds)
        known = self._within_reach if len(nodes) >= wanted else 0
        self._within_reach = max(len(nodes), known)
        return nodes

    def _intake(self) -> Intake:
        """What takes the replies of the round that was configured last."""
        server = None
        if self._server is not None:
            server = MemoryCheckpoint(from_arrays(self._server), "the server")
        round_ = Round(
            server, self.aggregator, state=self.state, checks=self.checks, keep=self.keep
        )
        specs = {} if server is None else server.specs()
        return Intake(round_, specs, self.keys, self._asked, self._names)

    def _closed(self, intake: Intake) -> Aggregated:
        """The new model; the server's where the aggregator cannot make one of what there is."""
        try:
            return intake.round.close()
        except AlloyError as error:
            if self._server is None or self.checks.on_bad == "error":
                raise
            why = str(error).partition("\n")[0]
        number = self.state.round + 1
        record = RoundRecord(number, self.aggregator.name, (), tuple(intake.left), why)
        kept = dataclasses.replace(self.state, round=number)
        return Aggregated({}, kept, record)

    def _content(
        self, number: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> dict[str, ArrayRecord | ConfigRecord]:
        settings = ConfigRecord({**config, self.keys.round: number})
        return {self.keys.arrays: arrays, self.keys.config: settings}

    def _sample(self, nodes: Sequence[int], fraction: float, least: int, what: str) -> list[int]:
        size = min(len(nodes), max(int(len(nodes) * fraction), least))
        return sorted(random.Random(f"{self.seed} {what}").sample(nodes, size))


def _messages(
    records: Mapping[str, ArrayRecord | ConfigRecord], nodes: Sequence[int], kind: str
) -> list[Message]:
    content = RecordDict(dict(records))
    return [Message(content=content, message_type=kind, dst_node_id=node) for node in nodes]


def _mistakes(given: AlloyStrategy) -> list[str]:
    wrong = []
    if given.deadline is not None and not _real(given.deadline, TINY, math.inf):
        wrong.append(f"'deadline' must be seconds above 0, or None. Got {given.deadline!r}.")
    if not _real(given.node_wait, 0, math.inf):
        wrong.append(f"'node_wait' must be seconds of at least 0. Got {given.node_wait!r}.")
    for name in ("fraction_train", "fraction_evaluate"):
        if not _real(value := getattr(given, name), 0, 1):
            wrong.append(f"{name!r} must be a number in [0, 1]. Got {value!r}.")
    for name, least in (("quorum", 1), ("min_train_nodes", 0), ("min_available_nodes", 0)):
        if not is_whole(value := getattr(given, name)) or value < least:
            wrong.append(f"{name!r} must be a whole number of at least {least}. Got {value!r}.")
    if wrong or given.enough is None:
        return wrong
    if not is_whole(given.enough) or given.enough < given.quorum:
        wrong.append(f"'enough' must be at least the quorum, {given.quorum}. Got {given.enough!r}.")
    return wrong


def _real(value: object, low: float, high: float) -> bool:
    return is_number(value) and math.isfinite(value) and low <= value <= high
