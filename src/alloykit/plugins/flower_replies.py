"""What clients of Flower answer: an update with its numbers, and metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError
from alloykit.federation.update import Update
from alloykit.numerics import is_number
from alloykit.plugins.flower_api import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from alloykit.plugins.flower_arrays import read_arrays, to_arrays
from alloykit.types import TensorSpec

NAMED = 3
"""Arrays that a reason names before it says how many more."""

LONGEST_NAME = 100
"""Characters of a client's name."""


@dataclass(frozen=True)
class Keys:
    """What things are called in messages.

    Attributes:
        arrays: The record with the model, both ways.
        config: The record with the settings, to the clients.
        control: The record with control variates, for SCAFFOLD: the server's to the clients, its
            change from them.
        num_examples: In the metrics: examples that the client trained on.
        client: In the metrics a whole number, or in a record of settings a text: the client's own
            name, such as the number of its partition. Without it the client is called by its node,
            whose number changes from run to run.
        steps: In the metrics: local steps, for FedNova.
        loss: In the metrics: loss of the server's model on the client's data, for q-FedAvg.
        round: In the settings, and in the metrics where a client says which round it answers.
    """

    arrays: str = "arrays"
    config: str = "config"
    control: str = "control"
    num_examples: str = "num-examples"
    client: str = "client"
    steps: str = "steps"
    loss: str = "start-loss"
    round: str = "server-round"

    def numbers(self) -> set[str]:
        """The names of metrics that are no results."""
        records = ("arrays", "config", "control")
        return {getattr(self, field.name) for field in fields(self) if field.name not in records}


def metrics_of(message: Message) -> dict[str, Any]:
    """The numbers that a reply holds.

    Raises:
        CheckpointError: There is not exactly one record of them.
    """
    records = list(message.content.metric_records.values())
    if len(records) != 1:
        raise CheckpointError(f"it holds {len(records)} records of metrics, and one is asked for")
    return dict(records[0])


def client_of(message: Message, metrics: Mapping[str, Any], keys: Keys, otherwise: str) -> str:
    """What a client calls itself; a whole number in its metrics, or a text beside them."""
    for record in message.content.config_records.values():
        text = record.get(keys.client)
        if isinstance(text, str) and 0 < len(text) <= LONGEST_NAME and text.isprintable():
            return text
    number = metrics.get(keys.client)
    if not is_number(number) or not math.isfinite(number) or number != int(number):
        return otherwise
    return str(int(number))


def to_reply(
    update: Update, results: Mapping[str, float] | None = None, keys: Keys | None = None
) -> RecordDict:
    """What a client answers: ``Message(to_reply(update), reply_to=message)``.

    Args:
        update: What it sends. A client that is called by a stable name of its own is the same
            one in simulations and on real machines.
        results: What else it measured, to be averaged by examples.
        keys: What things are called; the strategy's.

    Raises:
        CheckpointError: The model holds values that are no dense tensors of numbers.

    Example:
        >>> import torch
        >>> update = Update("3", {"w": torch.zeros(2)}, num_examples=20)
        >>> dict(to_reply(update, {"loss": 0.5})["metrics"])
        {'num-examples': 20, 'loss': 0.5}
    """
    named = keys or Keys()
    numbers = {
        named.num_examples: update.num_examples,
        named.steps: update.steps,
        named.loss: update.loss,
        named.round: update.round,
        **(results or {}),
    }
    content = RecordDict(
        {
            named.arrays: to_arrays(update.model),
            "metrics": MetricRecord({n: v for n, v in numbers.items() if v is not None}),
            named.client: ConfigRecord({named.client: update.client}),
        }
    )
    if update.control:
        content[named.control] = to_arrays(update.control)
    return content


def update_of(
    message: Message,
    metrics: Mapping[str, Any],
    client: str,
    keys: Keys,
    server: Mapping[str, TensorSpec],
) -> Update:
    """The update that a reply holds; its tensors are views of the reply's bytes.

    Args:
        message: The reply.
        metrics: Its numbers.
        client: What the client is called.
        keys: What things are called in the reply.
        server: The server's tensors; payloads are held against them before they are read.

    Raises:
        CheckpointError: Arrays that are missing or cannot be read; the text is one line.
    """
    records = dict(message.content.array_records)
    control = records.pop(keys.control, None)
    if len(records) != 1:
        raise CheckpointError(f"it holds {len(records)} models, and one is asked for")
    (record,) = records.values()
    return Update(
        client,
        MemoryCheckpoint(_tensors(record, server), client),
        num_examples=metrics.get(keys.num_examples),
        round=metrics.get(keys.round),
        steps=metrics.get(keys.steps),
        loss=metrics.get(keys.loss),
        control=None if control is None else _tensors(control, server),
    )


def averaged_metrics(
    reports: Sequence[tuple[float, Mapping[str, Any]]], leave_out: Iterable[str] = ()
) -> dict[str, float | list[float]]:
    """The clients' results, averaged by weight; each over the clients that give it.

    Who gives NaN, infinity, or a list of another length than the first, is no part of that
    result's average.

    Args:
        reports: Weight and metrics of every client.
        leave_out: Names that are no results.

    Example:
        >>> averaged_metrics([(3.0, {"loss": 1.0}), (1.0, {"loss": 2.0})])
        {'loss': 1.25}
    """
    skipped = set(leave_out)
    names = dict.fromkeys(name for _, metrics in reports for name in metrics)
    found: dict[str, float | list[float]] = {}
    for name in [name for name in names if name not in skipped]:
        given = [(weight, metrics[name]) for weight, metrics in reports if name in metrics]
        usable = [pair for pair in given if all(map(math.isfinite, _row(pair[1])))]
        alike = [pair for pair in usable if _form(pair[1]) == _form(usable[0][1])]
        if alike:
            found[name] = _mean(alike)
    return found


def _mean(given: Sequence[tuple[float, Any]]) -> float | list[float]:
    total = sum(weight for weight, _ in given)
    rows = [[weight / total * number for number in _row(value)] for weight, value in given]
    means = [sum(column) for column in zip(*rows, strict=True)]
    return means if isinstance(given[0][1], list) else means[0]


def _row(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _form(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None


def _tensors(record: ArrayRecord, server: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    tensors, wrong = read_arrays(record, server)
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise CheckpointError("; ".join(wrong[:NAMED]) + more)
    return tensors
