"""Rounds of a federation in one process: from the first, or from a snapshot, to the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from alloykit.data.examples import Examples
from alloykit.errors import UnknownName, did_you_mean
from alloykit.evaluation.predicting import unwrapped
from alloykit.federation.clients import Client, started
from alloykit.federation.judging import judge
from alloykit.federation.one_round import Progress, Stage, next_round
from alloykit.federation.round_checks import aggregator_of, check_run, kept_names, sent_names
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.round_snapshot import RoundSnapshots, identity_of
from alloykit.federation.settings import Federation
from alloykit.federation.standing import Standing
from alloykit.training.rows import Rows
from alloykit.training.scoring import Validation
from alloykit.types import Task


@dataclass(frozen=True, eq=False)
class FederatedRun:
    """What rounds lead to.

    Attributes:
        model: The server's model after the last round, in eval mode.
        history: What happened in each round.
        kept: Client -> the tensors that it kept to itself; empty without ``keep``.
    """

    model: nn.Module
    history: FederationHistory
    kept: Mapping[str, Mapping[str, Tensor]]

    def model_of(self, client: str) -> nn.Module:
        """One client's own model: the server's, with the tensors that the client kept."""
        if client not in self.kept:
            raise UnknownName(
                f"The client {client!r} kept no tensors to itself."
                f"{did_you_mean(client, list(self.kept))} "
                f"These did: {', '.join(self.kept) or 'none'}."
            )
        return started(unwrapped(self.model), self.kept[client]).eval()


def run_rounds(
    model: nn.Module,
    partitions: Mapping[str, Rows],
    settings: Federation | None = None,
    *,
    task: Task = "classification",
    validation: Examples | Validation | None = None,
    unlabelled: Examples | None = None,
    snapshot: Path | None = None,
    progress: Progress | None = None,
) -> FederatedRun:
    """Let clients and a server make one model in rounds; ``model`` is changed in place.

    In every round some clients train a copy of the server's model, each on its own rows and one
    after the other; the server checks and combines what they send. One client trains at a time;
    updates that have to be compared are held to the round's end, beyond a limit in temporary
    files. The same seed gives the same bits, whatever the order of the partitions, and whether
    the run was interrupted or not.

    Args:
        model: The server's, blank or trained. What requires no gradient is not trained. Of a
            wrapper (torch.compile, DataParallel) the module inside is trained.
        partitions: Client -> its rows, with targets.
        settings: How it goes.
        task: Chooses the clients' loss, and what the model is scored by.
        validation: What scores the model after each round, with the task's metric, or a measure
            of your own. It chooses nothing: the last model is returned. Where clients keep tensors
            to themselves, the score is the mean over their own models.
        unlabelled: The server's own data, for FedDF; targets are not looked at.
        snapshot: Folder that is written after each round, and gone on from. It may be gone on
            from with more rounds.
        progress: Called with (text, clients done, clients in all).

    Raises:
        InvalidParameter: Settings that do not fit the model, the clients or each other.
        MissingInput: No clients; or FedDF without unlabelled data.
        DataError: A client's data cannot be trained on; or a bad update, where the checks say that
            it ends the run.
        OutputExists: The snapshot is of another run; all differences are listed.

    Example:
        >>> import torch
        >>> x = torch.randn(40, 2)
        >>> parts = {n: Rows(x[rows], (x[rows, 0] > 0).long()) for n, rows in
        ...          {"a": slice(0, 20), "b": slice(20, 40)}.items()}
        >>> run = run_rounds(nn.Linear(2, 2), parts, Federation(rounds=2))
        >>> [each.clients for each in run.history.rounds]
        [('a', 'b'), ('a', 'b')]
    """
    chosen = settings or Federation()
    aggregator = aggregator_of(chosen, len(partitions))
    inner = unwrapped(model)
    check_run(inner, partitions, chosen, aggregator, task, unlabelled)
    scores = judge(validation, task)
    stage = Stage(
        settings=chosen,
        task=task,
        aggregator=aggregator,
        judge=scores,
        sent=sent_names(inner, chosen.keep),
        kept=kept_names(inner, chosen.keep),
        classes=_classes(partitions) if chosen.attacks else 0,
        unlabelled=unlabelled,
        tell=progress,
    )
    clients = {
        name: Client(name, partitions[name], chosen.attacks.get(name))
        for name in sorted(partitions)
    }
    history = FederationHistory((), scores.metric, scores.higher_is_better)
    standing = Standing(inner, clients, history)
    disk = None
    if snapshot is not None:
        said = identity_of(standing, chosen, aggregator, task, validation, unlabelled)
        disk = RoundSnapshots(snapshot, said, chosen.rounds)
        standing = disk.resume(standing)
    while len(standing.history.rounds) < chosen.rounds:
        standing = next_round(standing, stage)
        if disk is not None:
            disk.write(standing)
    model.eval()
    kept = {name: client.kept for name, client in standing.clients.items() if client.kept}
    return FederatedRun(model, standing.history, kept)


def _classes(partitions: Mapping[str, Rows]) -> int:
    labels = [rows.targets for rows in partitions.values() if rows.targets is not None]
    return max(int(each.max()) for each in labels) + 1
