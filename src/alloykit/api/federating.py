"""The verb federate: clients that keep their data train one model in rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alloykit.api.inputs import as_training
from alloykit.api.retraining import known_classes, option_mistakes
from alloykit.data.examples import Examples, as_examples
from alloykit.data.splits import OnOverlap, check_splits
from alloykit.distillation.checking import training_examples
from alloykit.errors import DataError, InvalidParameter, MissingInput, listing
from alloykit.evaluation.freezing import require_modules
from alloykit.federation.contract import Aggregator
from alloykit.federation.rounds import FederatedRun, run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.retraining import blank
from alloykit.training.rows import hold
from alloykit.training.scoring import Validation
from alloykit.training.settings import Training
from alloykit.types import Task


def federate(
    model: nn.Module | Callable[[], nn.Module],
    partitions: Mapping[str, Any] | Sequence[Any],
    *,
    rounds: int = 10,
    method: str | Aggregator = "fedavg",
    parameters: Mapping[str, Any] | None = None,
    training: Training | Mapping[str, Any] | None = None,
    validation: Any = None,
    unlabelled: Any = None,
    distillation: Training | Mapping[str, Any] | None = None,
    task: Task = "classification",
    seed: int = 0,
    batch_size: int = 256,
    snapshot: str | Path | None = None,
    on_overlap: OnOverlap = "error",
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> FederatedRun:
    """Train one model in rounds on data that stays with its owners: a simulation in one process.

    In every round the server gives its model to some clients, each trains a copy on its own data,
    and the server checks and combines what they send back.

    Use it to find out, before anything is installed anywhere, what a federation would reach on
    data like yours, with which aggregator, in how many rounds and bytes, and what clients that
    fail, lag or lie would do to it. For real machines there is the plug-in for Flower.

    Args:
        model: The server's model, as it is, or a callable that builds a blank one. Yours is left
            as it is. What requires no gradient is not trained.
        partitions: Each client's data by name (or in order, then they are numbered), in any form
            that ``compare`` takes: (inputs, targets) arrays, a Dataset, a DataLoader.
        rounds: At least 1.
        method: An aggregator or a merge method by name ("fedavg", "fedadam", "scaffold",
            "trimmed_mean", "multi_krum", ...), or one that is built.
        parameters: Of a method given by name.
        training: How a client trains in a round: a ``Training``, or a mapping of its settings. By
            default one epoch of plain SGD in batches of 32, with steps of 0.05.
        validation: Scores the server's model after every round. It chooses nothing: the last
            model is returned.
        unlabelled: Data of the server's own, for FedDF: inputs alone, or a split whose labels are
            not looked at.
        distillation: How the server trains on it, as for ``training``; by default a ``Training``.
        task: How outputs and targets are read.
        seed: Of everything that is drawn; at least 0.
        batch_size: Of splits given as arrays, while they are read.
        snapshot: Folder that is written after every round, and gone on from, to the same bits.
        on_overlap: "error", "drop" (from the partitions) or "allow" for examples that are in
            ``validation`` too. Clients may share examples with each other.
        progress: Called with a text, the clients done and the clients in all.
        **settings: The others of ``Federation``: ``fraction`` or ``clients_per_round``,
            ``checks``, ``proximal`` (FedProx), ``keep`` (FedBN), ``drop_out``, ``stragglers`` and
            ``delay``, ``attacks``, ``temperature`` and ``pooling`` (FedDF).

    Raises:
        InvalidParameter: Settings outside their ranges or that do not fit; all are listed.
        UnknownName: There is no such method.
        MissingInput: No clients, or distillation without data.
        DataError: Empty partitions, labels that the model has no class for, or data that the
            model cannot be run on; the client is named.
        DataLeak: Examples are both in a partition and in ``validation``.
        OutputExists: The snapshot is of another run; all differences are listed.

    Example:
        >>> import torch
        >>> parts = {"here": (torch.tensor([[1.0]]), [1]), "there": (torch.tensor([[-1.0]]), [0])}
        >>> found = federate(nn.Linear(1, 2), parts, rounds=3)
        >>> found.history.rounds[-1].clients
        ('here', 'there')

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data,
        2017, arXiv:1602.05629, algorithm 1.
    """
    if wrong := option_mistakes(task, batch_size, snapshot, progress):
        raise InvalidParameter(f"A federation cannot be run so:\n{listing(wrong)}")
    teaches = unlabelled is not None or distillation is not None
    chosen = Federation.of(
        {
            **settings,
            "rounds": rounds,
            "method": method,
            "parameters": parameters or {},
            "training": training,
            "distillation": as_training(distillation) if teaches else None,
            "seed": seed,
        }
    )
    server = _server(model, seed)
    held = None
    if validation is not None and not isinstance(validation, Validation):
        held = as_examples(validation, "validation", batch_size=batch_size)
    clients = _clients(server, partitions, held, task, batch_size, on_overlap)
    return run_rounds(
        server,
        {name: hold(examples) for name, examples in clients.items()},
        chosen,
        task=task,
        validation=validation if held is None else held,
        unlabelled=None if unlabelled is None else _unlabelled(unlabelled, held, task, on_overlap),
        snapshot=None if snapshot is None else Path(snapshot),
        progress=progress,
    )


def _server(model: Any, seed: int) -> nn.Module:
    """A copy of the server's model, or a blank one."""
    if isinstance(model, nn.Module):
        require_modules({"the model": model})
        return copy.deepcopy(model)
    if not callable(model):
        raise InvalidParameter(
            f"'model' must be a module, or a callable that builds one. Got {model!r}."
        )
    made = blank(model, seed)
    require_modules({"what the callable returned": made})
    return made


def _clients(
    model: nn.Module,
    partitions: Any,
    validation: Examples | None,
    task: Task,
    batch_size: int,
    on_overlap: OnOverlap,
) -> dict[str, Examples]:
    """Each client's examples, once labels and model fit and none is in the validation split."""
    if not isinstance(partitions, Mapping | Sequence) or isinstance(partitions, str):
        raise InvalidParameter(
            "'partitions' must be the data of several clients, by name or in order. Got a "
            f"{type(partitions).__name__}."
        )
    given = dict(partitions) if isinstance(partitions, Mapping) else _numbered(partitions)
    if not given:
        raise MissingInput("A federation has at least one client. 'partitions' is empty.")
    judging = [] if validation is None else [validation]
    found: dict[str, Examples] = {}
    classes = None
    for name, split in given.items():
        try:
            examples = as_examples(split, "train", batch_size=batch_size)
            check_splits([examples, *judging], task=task, on_overlap="allow")
            if not found:
                classes = known_classes(model, examples, task)
            found[str(name)], *_ = check_splits(
                [examples, *judging], task=task, classes=classes, on_overlap=on_overlap
            )
        except DataError as error:
            raise type(error)(f"The client {name}: {error}") from None
    return found


def _unlabelled(
    given: Any, validation: Examples | None, task: Task, on_overlap: OnOverlap
) -> Examples:
    """The server's own data, of which none is in the validation split."""
    examples, _ = training_examples(given)
    if validation is None:
        return examples
    try:
        return check_splits([examples, validation], task=task, on_overlap=on_overlap)[0]
    except DataError as error:
        raise type(error)(f"The unlabelled data: {error}") from None


def _numbered(partitions: Sequence[Any]) -> dict[str, Any]:
    width = len(str(len(partitions)))
    return {f"client {number:0{width}}": split for number, split in enumerate(partitions, start=1)}
