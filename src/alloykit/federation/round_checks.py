"""Whether a model, clients and settings fit each other, checked before the first round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from alloykit.checkpoints.memory import from_module
from alloykit.checkpoints.wording import shown
from alloykit.data.examples import Examples
from alloykit.errors import (
    DataError,
    InvalidParameter,
    MissingInput,
    UnknownName,
    did_you_mean,
    listing,
)
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator
from alloykit.federation.settings import Federation
from alloykit.federation.structure import structure_of
from alloykit.registry import aggregators
from alloykit.training.hardware import trained_parameters
from alloykit.training.rows import Rows
from alloykit.types import Task


def sent_names(model: nn.Module, keep: Sequence[str]) -> tuple[str, ...]:
    """The tensors that travel between server and clients; of tied ones the first."""
    return structure_of(from_module(model), keep).sent


def kept_names(model: nn.Module, keep: Sequence[str]) -> tuple[str, ...]:
    """The tensors that each client keeps to itself; of tied ones the first."""
    structure = structure_of(from_module(model), keep)
    sent = {*structure.sent, *structure.tied}
    return tuple(name for name in structure.specs if name not in sent)


def aggregator_of(settings: Federation, clients: int) -> Aggregator:
    """The aggregator that the settings name, told what a simulation knows of its clients.

    Args:
        settings: Method, parameters and the clients' step size.
        clients: How many there are in all.
    """
    given = dict(settings.parameters)
    if settings.method == "feddf":
        raise UnknownName(
            "feddf is no aggregator of its own: it is any aggregator, and then a distillation on "
            "the server. Leave out the method, and give 'distillation' and unlabelled data."
        )
    if settings.method in aggregators.names():
        known = {"num_clients": clients, "client_learning_rate": settings.training.learning_rate}
        takes = aggregators.entry(settings.method_name).parameters
        given = {name: value for name, value in known.items() if name in takes} | given
    return as_aggregator(settings.method, given)


def check_run(
    model: nn.Module,
    partitions: Mapping[str, Rows],
    settings: Federation,
    aggregator: Aggregator,
    task: Task,
    unlabelled: Examples | None,
) -> None:
    """Refuse what cannot be run.

    Raises:
        MissingInput: No clients; FedDF without data.
        DataError: Clients without targets.
        InvalidParameter: Settings that do not fit; all are listed.
    """
    if not partitions:
        raise MissingInput("A federation has at least one client. 'partitions' is empty.")
    if silent := [name for name, rows in partitions.items() if rows.targets is None]:
        raise DataError(f"These clients have no targets to train on:\n{listing(silent)}")
    if (settings.distillation is None) != (unlabelled is None):
        what = "'unlabelled' data" if unlabelled is None else "'distillation', a Training"
        raise MissingInput(
            f"FedDF takes both unlabelled data of the server's and a way to train on it. {what} "
            "is missing."
        )
    trained_parameters(model)
    if wrong := _mistakes(model, partitions, settings, aggregator, task):
        raise InvalidParameter(f"These settings do not fit the federation:\n{listing(wrong)}")


def _mistakes(
    model: nn.Module,
    partitions: Mapping[str, Rows],
    settings: Federation,
    aggregator: Aggregator,
    task: Task,
) -> list[str]:
    names = list(from_module(model).specs())
    wrong = [
        f"keep: {glob!r} matches none of the model's {len(names)} tensors"
        for glob in settings.keep
        if not any(fnmatchcase(name, glob) for name in names)
    ]
    if not sent_names(model, settings.keep):
        wrong.append("keep: nothing is left to aggregate")
    wrong += [
        f"attacks: there is no client {shown(name)}.{did_you_mean(name, list(partitions))}"
        for name in settings.attacks
        if name not in partitions
    ]
    if task == "regression" and any(a.kind == "label_flip" for a in settings.attacks.values()):
        wrong.append("attacks: label_flip is for classes, and this is regression")
    if task == "tokens" and settings.distillation is not None:
        wrong.append("distillation: FedDF is for classification and regression")
    if (settings.clients_per_round or 0) > len(partitions):
        wrong.append(
            f"clients_per_round is {settings.clients_per_round}, and there are {len(partitions)}"
        )
    if aggregator.control is not None and settings.training.optimizer != "sgd":
        wrong.append(
            f"{aggregator.name} reads gradients off the clients' steps, so they have to train with "
            f"optimizer='sgd', not {settings.training.optimizer!r}"
        )
    return wrong
