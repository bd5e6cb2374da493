"""A federation on disk between two rounds: written whole or not at all, gone on from exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from alloykit.checkpoints.loading import load_state
from alloykit.checkpoints.memory import from_module
from alloykit.checkpoints.wording import shown
from alloykit.data import batches as batch_of
from alloykit.data.examples import Examples
from alloykit.errors import OutputExists
from alloykit.federation.clients import Client, tensors_of
from alloykit.federation.contract import Aggregator, ServerState
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.settings import Federation
from alloykit.federation.standing import Late, Standing
from alloykit.federation.update import Update
from alloykit.training.rows import Rows
from alloykit.training.scoring import Validation
from alloykit.training.snapshot_file import load, made_folder, prefixed, save, sweep, under
from alloykit.training.snapshot_identity import as_json, check_same
from alloykit.types import Task

FILE = "federation.safetensors"
SLICE = 4096
UPDATE = ("num_examples", "round", "steps", "loss")


class RoundSnapshots:
    """Where a federation is written to after each round.

    Args:
        folder: The folder, made where it is missing.
        identity: What a run must share with the snapshot that it goes on from.
        rounds: How many the run asks for.

    Raises:
        CheckpointError: The folder cannot be made.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rounds: int) -> None:
        self._path = Path(folder).expanduser() / FILE
        self._identity, self._rounds = as_json(identity), rounds
        made_folder(self._path.parent)
        sweep(self._path.parent)

    def write(self, standing: Standing) -> None:
        """Write it as it stands."""
        tensors = prefixed("model/", tensors_of(standing.model))
        for slot, values in standing.state.tensors.items():
            tensors |= prefixed(f"state/{slot}/", values)
        for place, client in enumerate(standing.clients.values()):
            tensors |= prefixed(f"kept/{place}/", client.kept)
            tensors |= prefixed(f"control/{place}/", client.control)
        for place, late in enumerate(standing.late):
            tensors |= prefixed(f"late/{place}/", late.update.model)
            tensors |= prefixed(f"late control/{place}/", late.update.control or {})
        record = {
            "settings": self._identity,
            "history": standing.history.to_json(),
            "state": {"round": standing.state.round, "numbers": dict(standing.state.numbers)},
            "late": [_late_record(late) for late in standing.late],
        }
        save(self._path, record, tensors)

    def resume(self, standing: Standing) -> Standing:
        """What the folder holds, put into the model; ``standing`` where it is empty.

        Raises:
            OutputExists: It is of another run, or of more rounds.
            CheckpointError: It is damaged.
        """
        if not self._path.exists():
            return standing
        record, tensors = load(self._path)
        check_same(self._path, record["settings"], self._identity)
        history = FederationHistory.of(record["history"])
        if len(history.rounds) > self._rounds:
            raise OutputExists(
                f"{shown(str(self._path))} is {len(history.rounds)} rounds far, and "
                f"{self._rounds} are asked for. Ask for at least as many, or give another folder."
            )
        load_state(standing.model, under(tensors, "model/"))
        clients = {
            name: _client(client, place, tensors)
            for place, (name, client) in enumerate(standing.clients.items())
        }
        late = tuple(_late(each, i, tensors) for i, each in enumerate(record["late"]))
        state = ServerState(**record["state"], tensors=_slots(under(tensors, "state/")))
        return replace(standing, clients=clients, history=history, state=state, late=late)


def identity_of(
    standing: Standing,
    settings: Federation,
    aggregator: Aggregator,
    task: Task,
    validation: Examples | Validation | None,
    unlabelled: Examples | None,
) -> dict[str, Any]:
    """What makes two runs the same, but for the number of rounds, as JSON values."""
    given = settings.to_json()
    del given["rounds"]
    model = from_module(standing.model).specs()
    metric = standing.history.metric
    if isinstance(validation, Examples):
        metric += f" on {validation.digest}"
    return {
        "federation": {**given, "parameters": dict(aggregator.parameters)},
        "task": task,
        "validation": metric,
        "unlabelled": "" if unlabelled is None else unlabelled.digest,
        "model": {name: f"{spec.dtype} {list(spec.shape)}" for name, spec in model.items()},
        "clients": {name: _digest(client.rows) for name, client in standing.clients.items()},
    }


def _digest(rows: Rows) -> str:
    """Of the inputs and targets of all rows, in order."""
    state = hashlib.blake2b(digest_size=16)
    for begin in range(0, len(rows), SLICE):
        inputs = batch_of.transform(rows.inputs, lambda t, i=begin: t[i : i + SLICE])  # type: ignore[misc]
        found = batch_of.digests(inputs)
        if rows.targets is not None:
            found += batch_of.digests(rows.targets[begin : begin + SLICE])
        state.update(b"".join(found))
    return f"{len(rows)} rows {state.hexdigest()}"


def _client(client: Client, place: int, tensors: Mapping[str, Tensor]) -> Client:
    return replace(
        client,
        kept=under(tensors, f"kept/{place}/"),
        control=under(tensors, f"control/{place}/"),
    )


def _late_record(late: Late) -> dict[str, Any]:
    numbers = {name: getattr(late.update, name) for name in UPDATE}
    return {**numbers, "client": late.update.client, "due": late.due}


def _late(record: Mapping[str, Any], place: int, tensors: Mapping[str, Tensor]) -> Late:
    update = Update(
        record["client"],
        under(tensors, f"late/{place}/"),
        control=under(tensors, f"late control/{place}/") or None,
        delta=True,
        **{name: record[name] for name in UPDATE},
    )
    return Late(update, record["due"])


def _slots(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    slots: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        slot, _, rest = name.partition("/")
        slots.setdefault(slot, {})[rest] = tensor
    return slots
