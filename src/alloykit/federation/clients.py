"""One simulated client in one round: a copy of the server's model, trained on rows of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from alloykit.checkpoints.loading import load_state
from alloykit.federation.client_terms import (
    control_change,
    correction,
    normalised_steps,
    proximal,
    trained,
)
from alloykit.federation.contract import Aggregator
from alloykit.federation.poisoning import Attack, claimed, poisoned_rows, poisoned_tensors
from alloykit.federation.sampling import epochs_of
from alloykit.federation.settings import Federation
from alloykit.federation.update import Update
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.order import derived_seed, steps_of
from alloykit.training.rows import Part, Rows
from alloykit.training.settings import Training
from alloykit.training.stepping import Loss
from alloykit.types import Task

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Client:
    """What one client has.

    Attributes:
        name: Its name.
        rows: Its data.
        attack: What it does instead of its part; None for honest ones.
        kept: Tensors that it keeps to itself, once it has trained.
        control: Its control variate, for SCAFFOLD.
    """

    name: str
    rows: Rows
    attack: Attack | None = None
    kept: Tensors = field(default_factory=dict)
    control: Tensors = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Given:
    """What the server gives to every client of a round.

    Attributes:
        model: Its model.
        sent: Names of the tensors that travel, tied ones once.
        kept: Names of those that each client keeps to itself.
        number: Of the round, from 1.
        aggregator: What will combine the updates.
        control: Its control variate, for SCAFFOLD.
    """

    model: nn.Module
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    number: int
    aggregator: Aggregator
    control: Tensors = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of one client's training.

    Attributes:
        client: What it has now.
        update: What it sends.
        loss: Its mean training loss in its last epoch.
    """

    client: Client
    update: Update
    loss: float


def answer(
    client: Client, given: Given, settings: Federation, *, task: Task, classes: int = 0
) -> Answer:
    """Train a copy of the server's model on the client's rows, and say what it sends.

    The result depends on the seed, the round, the client's name and its data alone.

    Args:
        client: What it has.
        given: What the server gives.
        settings: How it trains.
        task: Chooses the loss.
        classes: Number of classes, for labels that an attack flips.

    Raises:
        DataError: Its loss became NaN or infinite.
    """
    model = started(given.model, client.kept)
    # The server's model stays as it is while the copy is trained.
    places = tensors_of(given.model)
    begun = {**places, **_beside(client.kept, places)}
    control = _beside(given.control, places)
    client = replace(client, control=_beside(client.control, places))
    rows = poisoned_rows(client.rows, client.attack, classes)
    loss = mean_loss(model, rows, task) if "loss" in given.aggregator.asks else None
    training = _training(client, given, settings)
    terms = _terms(client, control, settings, begun)
    history = train(model, rows, _with_terms(loss_of(task), terms), training)
    ended = tensors_of(model)
    own = {name: ended[name] for name in trained(model) if name in given.sent}
    steps = normalised_steps(training, history.steps, settings.proximal)
    change = None
    if given.aggregator.control is not None:
        change = control_change(begun, own, control, training.learning_rate * steps)
        new = {name: client.control.get(name, 0.0) + each for name, each in change.items()}
        client = replace(client, control=new)
    seed = derived_seed(settings.seed, "attack", given.number, client.name)
    sent = {name: ended[name] for name in given.sent}
    update = Update(
        client.name,
        {**sent, **poisoned_tensors(own, begun, client.attack, seed)},
        num_examples=claimed(len(rows), client.attack),
        round=given.number,
        steps=steps,
        loss=loss,
        control=change,
    )
    client = replace(client, kept={name: ended[name] for name in given.kept})
    return Answer(client, update, history.losses[-1])


def _training(client: Client, given: Given, settings: Federation) -> Training:
    """How a client trains in a round: slow ones for fewer epochs, each with a seed of its own."""
    return replace(
        settings.training,
        epochs=epochs_of(settings, given.number, client.name),
        seed=derived_seed(settings.seed, "client", given.number, client.name),
    )


def _beside(tensors: Tensors, places: Tensors) -> dict[str, Tensor]:
    """The tensors where the model's of the same names are: a snapshot's are on the CPU."""
    return {name: tensor.to(places[name].device) for name, tensor in tensors.items()}


def started(server: nn.Module, kept: Tensors) -> nn.Module:
    """A copy of the server's model with the tensors that a client keeps to itself."""
    model = copy.deepcopy(server)
    if kept:
        load_state(model, {**tensors_of(model), **kept})
    return model


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict, by name."""
    state = model.state_dict()
    return {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def as_delta(update: Update, server: Tensors) -> Update:
    """The same update as what training changed, so that it can come in a later round.

    Args:
        update: With a whole model.
        server: The tensors that the client started from.
    """
    changes = {
        name: tensor if tensor.dtype == torch.bool else tensor - server[name]
        for name, tensor in update.model.items()
    }
    return replace(update, model=changes, delta=True)


def mean_loss(model: nn.Module, rows: Rows, task: Task, batch_size: int = 256) -> float:
    """The mean loss of a model on all rows, in eval mode."""
    loss, total, count = loss_of(task), 0.0, 0
    # Augmentation would draw from the caller's generator.
    rows = replace(rows, augment=None)
    model.eval()
    with torch.no_grad():
        for (batch,) in steps_of(torch.arange(len(rows)), batch_size):
            scored = rows.scored(batch)
            total += float(loss(model, rows.part(batch).placed(model))) * scored
            count += scored
    return total / max(count, 1)


def _terms(
    client: Client, control: Tensors, settings: Federation, begun: Tensors
) -> list[Callable[[nn.Module], Tensor]]:
    terms: list[Callable[[nn.Module], Tensor]] = []
    if settings.proximal:
        terms.append(lambda model: proximal(model, begun, settings.proximal))
    if client.control or control:
        terms.append(lambda model: correction(model, client.control, control))
    return terms


def _with_terms(loss: Loss, terms: list[Callable[[nn.Module], Tensor]]) -> Loss:
    """The loss with the gradients of these terms, and without their values."""

    def together(model: nn.Module, part: Part) -> Tensor:
        found = loss(model, part)
        for term in terms:
            extra = term(model)
            found = found + (extra - extra.detach())
        return found

    return together if terms else loss
