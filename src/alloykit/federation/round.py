"""One round on the server: updates are checked as they come, then combined into a new model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.wording import counted, shown
from alloykit.data.storage import MEMORY_LIMIT
from alloykit.errors import AlloyError, CheckpointError, DataError, MissingInput
from alloykit.federation.checks import Checks, claims, exceeds
from alloykit.federation.combining import Combined, boundless, combine_without, finite, looked_at
from alloykit.federation.contract import Aggregator, Merge, Report, ServerState, Sum
from alloykit.federation.controls import SLOT, misfit_of_control, moved
from alloykit.federation.finishing import Ending, Slots
from alloykit.federation.holding import copied, in_memory, in_one_line, size, unreadable
from alloykit.federation.running_sum import RunningSum
from alloykit.federation.server_state import refuse_other_state
from alloykit.federation.structure import (
    Structure,
    common_structure,
    disagreement,
    misfit,
    refuse_globs,
    resolved,
    structure_of,
)
from alloykit.federation.update import Aggregated, Counted, LeftOut, RoundRecord, Update
from alloykit.federation.values import Source, Values
from alloykit.threads import alone, one_thread_each
from alloykit.types import Checkpoint, TensorSpec

Write = Callable[[Mapping[str, TensorSpec], Iterator[tuple[str, Tensor]], RoundRecord], None]
"""Takes a model tensor by tensor, with its specs and the record of the round."""


@dataclass(frozen=True, eq=False)
class Taken:
    """An update that may count.

    Attributes:
        report: Its numbers.
        says: Whether it says how many examples it has.
        source: Its tensors. Once they are in a running sum those that are never averaged, or
            None where there are none.
        control: Change of its control variate.
    """

    report: Report
    says: bool
    source: Source | None
    control: Mapping[str, Tensor] | None


class Round:
    """One round on the server: updates are checked as they come, and combined at its end.

    The result does not depend on the order in which updates come: they are combined in the order
    of the clients' names. Where the aggregator is a sum and no limit compares clients with each
    other, each update is added up as it comes and dropped (in float64, so that the order does not
    show in float32). Otherwise updates are copied, for a client may train on in the same memory,
    and kept to the end of the round; beyond ``memory_limit`` bytes, in temporary files. Files are
    read where they lie.

    Args:
        server: The model that the clients started from: whatever ``open_checkpoint`` takes; None
            where it is not known and the aggregator does without.
        aggregator: How to combine; ``choosing.as_aggregator`` finds one by name.
        state: What the server kept from the last round.
        checks: Which updates count.
        keep: Globs of tensors that are not aggregated: the server's stay as they are, and clients
            need not send them (FedBN keeps the normalisation layers to each client).
        memory_limit: Bytes of updates that are kept in memory; None leaves all where they are, and
            adds nothing up before the end: they must not change until then.

    Raises:
        MissingInput: The aggregator needs the server's model, and it was not given.
        InvalidParameter: A glob that matches no tensor.
        CheckpointError: A server that cannot be read, or a state of another model.

    Example:
        >>> import torch
        >>> from alloykit.federation.fedavg import fedavg
        >>> round = Round({"w": torch.zeros(1)}, fedavg())
        >>> round.add(Update("a", {"w": torch.tensor([1.0])}, num_examples=3))
        ''
        >>> round.add(Update("b", {"w": torch.tensor([[5.0]])}, num_examples=1))
        "w is [1, 1], the server's [1]"
        >>> round.close().tensors["w"]
        tensor([1.])
    """

    def __init__(
        self,
        server: Any,
        aggregator: Aggregator,
        *,
        state: ServerState | None = None,
        checks: Checks | None = None,
        keep: Sequence[str] = (),
        memory_limit: int | None = MEMORY_LIMIT,
    ) -> None:
        self._server = None if server is None else open_checkpoint(server, name="the server")
        self._aggregator = aggregator
        self._state, self._checks = state or ServerState(), checks or Checks()
        one_by_one = memory_limit is not None and not self._checks.compares(aggregator)
        if aggregator.private:
            self._checks = replace(self._checks, examples_ratio=None, norm_ratio=None)
        self._room, self._threads = memory_limit, torch.get_num_threads()
        kept = (keep,) if isinstance(keep, str) else keep
        self._structure: Structure | None = None
        if self._server is None:
            _refuse_without_server(aggregator, kept)
        else:
            refuse_globs(kept, self._server)
            refuse_other_state(self._state, self._server)
            self._structure = structure_of(self._server, kept)
        self._rule = aggregator.rule(self._state)
        self._weighs = "num_examples" in aggregator.asks
        self._taken: dict[str, Taken] = {}
        self._left: list[LeftOut] = []
        self._refused: set[str] = set()  # who was left out for what they sent
        known = self._structure is not None
        # One of clients that say how many examples they have, and one of those that do not: which
        # of them counts is known at the end.
        self._sums: dict[bool, RunningSum] | None = None
        if isinstance(self._rule, Sum) and one_by_one and known:
            self._sums = {}

    @property
    def number(self) -> int:
        """The number of this round, from 1."""
        return self._state.round + 1

    def add(self, update: Update) -> str:
        """Take an update.

        Returns:
            Why it does not count; "" where it does, as far as can be said before the others come.

        Raises:
            DataError: It does not count, and the checks say that this ends the round.
        """
        with one_thread_each():
            reason = self._reason_against(update)
        if reason:
            self._refused.add(str(update.client))
            self.leave_out(update.client, reason)
        return reason

    def leave_out(self, client: str, reason: str) -> None:
        """Note that a client does not count: it failed, or never answered.

        Raises:
            DataError: The checks say that this ends the round.
        """
        self._left.append(LeftOut(str(client), reason))
        if self._checks.on_bad == "error":
            end = "" if reason.endswith((".", "?")) else "."
            raise DataError(
                f"Round {self.number} ended, because the update of {shown(client)} cannot be used: "
                f'{reason}{end} Checks(on_bad="leave_out") goes on without it.'
            )

    def close(self, write: Write | None = None) -> Aggregated:
        """Combine what counts; the server's model where too few do.

        Args:
            write: Takes the new model instead, tensor by tensor, so that it is never in memory as
                a whole: it is called with specs, an iterator of names and tensors, and the record.

        Raises:
            DataError: Updates that do not count, where the checks say that they end the round.
            MissingInput: None counts, and there is no server's model to keep.
            CheckpointError: The result is outside the range of its dtype.
        """
        with alone():
            while True:
                try:
                    return self._closed(write)
                except (CheckpointError, OSError):
                    # What can be opened may still turn out to be damaged, or to be gone.
                    if not (bad := self._unreadable()):
                        raise
                    self._leave_out_all(bad)

    def _closed(self, write: Write | None) -> Aggregated:
        self._compare_clients()
        while len(self._taken) >= self._checks.min_clients:
            taken = [self._taken[client] for client in sorted(self._taken)]
            found = self._combined(taken, at_once=write is None)
            if not found.bad:
                return self._new_model(taken, found, write)
            self._leave_out_all({taken[i].report.client: why for i, why in found.bad.items()})
        return self._old_model()

    def _unreadable(self) -> dict[str, str]:
        """Whose tensors cannot be read, and why."""
        every = {client: taken.source for client, taken in self._taken.items()}
        found = {c: unreadable(source.checkpoint) for c, source in every.items() if source}
        return {client: why for client, why in found.items() if why}

    def _reason_against(self, update: Update) -> str:
        client = str(update.client)
        if client in self._taken:
            return "it sent a second update in this round"
        if reason := claims(update, self._aggregator, self._checks, self.number):
            return reason
        try:
            opened = open_checkpoint(update.model, name=client)
            reason = self._misfit(update, opened)
        except (AlloyError, OSError) as error:
            return in_one_line(error)
        if reason:
            return reason
        report = Report(
            client,
            num_examples=float(update.num_examples or 1),
            steps=update.steps,
            loss=update.loss,
            staleness=self.number - (update.round or self.number),
        )
        source = Source(client, opened, update.delta)
        taken = Taken(report, update.num_examples is not None, source, update.control)
        if self._sums is not None:
            return unreadable(opened) or self._add_up(taken, self._sums)
        self._taken[client] = replace(taken, source=self._put_away(source))
        return ""

    def _misfit(self, update: Update, opened: Checkpoint) -> str:
        if update.delta and self._server is None:
            return "it holds a change of the server's model, which is not known"
        if update.delta and isinstance(self._rule, Merge):
            return f"it holds a change, and {self._aggregator.name} takes whole models"
        if self._structure is None or self._server is None:
            return ""
        exact = self._checks.dtypes == "exact"
        return (
            misfit(self._structure, opened, exact=exact)
            or disagreement(self._structure, self._server, opened, delta=update.delta)
            or misfit_of_control(update.control or {}, self._structure)
        )

    def _put_away(self, source: Source) -> Source:
        """The source with a copy of its tensors, in a file where those in memory are too many."""
        known = self._structure
        names = tuple(source.checkpoint.specs()) if known is None else known.sent
        if self._room is None or not names or not in_memory(source.checkpoint):
            return source
        self._room -= size(source.checkpoint, names)
        return replace(source, checkpoint=copied(source.checkpoint, names, on_disk=self._room < 0))

    def _add_up(self, taken: Taken, sums: dict[bool, RunningSum]) -> str:
        assert self._structure is not None
        assert self._server is not None
        assert isinstance(self._rule, Sum)
        report, source = taken.report, taken.source
        assert source is not None
        if self._checks.measures(self._aggregator):
            values = Values(self._structure, [source], self._server)
            (report,), bad = looked_at(values, [report], values.squares(), self._checks)
            if bad:
                return bad[0]
        if bad := boundless(self._rule, [report]):
            return bad[0]
        kind = taken.says or not self._weighs
        if kind not in sums:
            sums[kind] = RunningSum(self._structure, self._server)
        sums[kind].add(source, self._rule.factor(report))
        agreed = self._structure.agreed
        rest = replace(source, checkpoint=copied(source.checkpoint, agreed)) if agreed else None
        self._taken[report.client] = replace(taken, report=report, source=rest)
        return ""

    def _compare_clients(self) -> None:
        """Leave out what can only be told from the others: structures, numbers of examples."""
        if self._structure is None and self._taken:
            exact = self._checks.dtypes == "exact"
            clients = sorted(self._taken)
            sources = _sources([self._taken[client] for client in clients])
            every = {source.client: source.checkpoint for source in sources}
            self._structure, odd = common_structure(every, exact=exact)
            self._leave_out_all(odd)
        if not self._weighs:
            return
        # One client that says it must not be all that counts where the others do not.
        say = 2 * sum(taken.says for taken in self._taken.values()) >= len(self._taken)
        why = "it gives no number of examples"
        if not say:
            why = "it gives a number of examples, and most clients give none"
        self._leave_out_all({c: why for c, taken in self._taken.items() if taken.says != say})
        if self._sums is not None:
            return
        clients = sorted(self._taken)
        counts = [self._taken[client].report.num_examples for client in clients]
        ratio = self._checks.examples_ratio
        absurd = zip(clients, counts, exceeds(counts, ratio), strict=True)
        said = "it says that it has {:g} examples, over {:g} times the median of all"
        self._leave_out_all({c: said.format(n, ratio) for c, n, over in absurd if over})

    def _leave_out_all(self, reasons: Mapping[str, str]) -> None:
        self._refused |= reasons.keys()
        for client, reason in sorted(reasons.items()):
            del self._taken[client]
            self.leave_out(client, reason)

    def _combined(self, taken: Sequence[Taken], *, at_once: bool) -> Combined:
        assert self._structure is not None
        reports = [each.report for each in taken]
        if self._sums is not None:
            assert isinstance(self._rule, Sum)
            running = self._sums[taken[0].says or not self._weighs]
            factors, divisor = finite(self._rule.coefficients(reports)), self._rule.divisor(reports)
            return Combined(lambda name: running.combination(name, divisor), factors, reports)
        values = Values(self._structure, _sources(taken), self._server, self._threads)
        found = len(self._refused - self._taken.keys())
        return combine_without(
            found, values, self._state, reports, self._checks, self._aggregator, at_once=at_once
        )

    def _new_model(
        self, taken: Sequence[Taken], found: Combined, write: Write | None
    ) -> Aggregated:
        assert self._structure is not None
        sources = _sources(taken)
        origin = sources[0].checkpoint if self._server is None else self._server
        counters = [(source.checkpoint, source.delta) for source in sources]
        agreed = dict(resolved(self._structure, origin, counters))
        slots: Slots = {slot: dict(kept) for slot, kept in self._state.tensors.items()}
        ending = Ending(
            self._structure, self._server, found.tensor, agreed, self._aggregator, self._state,
            len(taken), self._checks.values, math.fsum(found.coefficients or [1.0]),
        )  # fmt: skip
        record = self._counted(taken, found)
        tensors: dict[str, Tensor] = {}
        if write is not None:
            write(ending.specs(), ending.tensors(slots), record)
        else:
            made = dict(ending.tensors(slots))
            tensors = {n: made[self._structure.tied.get(n, n)] for n in self._structure.specs}
        if self._aggregator.control is not None:
            changes = [each.control for each in taken if each.control is not None]
            factor = self._aggregator.control(len(taken))
            slots[SLOT] = moved(slots.get(SLOT, {}), changes, factor)
        numbers = dict(self._state.numbers)
        if self._aggregator.numbers is not None:
            numbers |= self._aggregator.numbers(self._state, found.reports)
        return Aggregated(tensors, ServerState(self.number, numbers, slots), record)

    def _counted(self, taken: Sequence[Taken], found: Combined) -> RoundRecord:
        factors: Sequence[float | None] = found.coefficients or [None] * len(taken)
        every = zip(found.reports, taken, factors, strict=True)
        return self._record(
            [Counted(r.client, r.num_examples if t.says else None, c, r.norm) for r, t, c in every]
        )

    def _old_model(self) -> Aggregated:
        count, least = len(self._taken), self._checks.min_clients
        why = f"{counted(count, 'update')} of at least {least} can be used"
        if self._server is None:
            reasons = "".join(f"\n  {shown(each.client)}: {each.reason}" for each in self._left)
            raise MissingInput(f"There is no new model: {why}.{reasons}")
        tensors = {name: self._server.read(name) for name in self._server.specs()}
        kept = replace(self._state, round=self.number)
        return Aggregated(tensors, kept, self._record([], why))

    def _record(self, counts: Sequence[Counted], kept_server: str = "") -> RoundRecord:
        name = self._aggregator.name
        return RoundRecord(self.number, name, tuple(counts), tuple(self._left), kept_server)


def _sources(taken: Sequence[Taken]) -> list[Source]:
    return [each.source for each in taken if each.source is not None]


def _refuse_without_server(aggregator: Aggregator, keep: Sequence[str]) -> None:
    why = ""
    if aggregator.step is not None or aggregator.asks & {"server", "norm", "control"}:
        why = f"{aggregator.name} starts from the server's model"
    elif keep:
        why = f"{', '.join(map(repr, keep))} would be kept as the server has them"
    if why:
        raise MissingInput(
            f"{why}, and it was not given. Give server=, or a base on the command "
            "line: --base FILE."
        )
