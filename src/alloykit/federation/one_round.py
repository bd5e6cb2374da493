"""One round of a simulated federation: clients train in turn, the server aggregates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from alloykit.checkpoints.loading import load_state
from alloykit.checkpoints.wording import counted, shown
from alloykit.data.examples import Examples
from alloykit.errors import AlloyError, DataError
from alloykit.federation import feddf
from alloykit.federation.clients import (
    Answer,
    Client,
    Given,
    answer,
    as_delta,
    started,
    tensors_of,
)
from alloykit.federation.contract import Aggregator
from alloykit.federation.controls import SLOT
from alloykit.federation.judging import Judge
from alloykit.federation.round import Round
from alloykit.federation.round_history import RoundResult
from alloykit.federation.sampling import asked, delay_of, drops_out, wanted
from alloykit.federation.settings import Federation
from alloykit.federation.standing import Late, Standing
from alloykit.federation.update import RoundRecord, Update
from alloykit.training.order import derived_seed
from alloykit.types import Task

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Stage:
    """What stays the same from round to round.

    Attributes:
        settings: How it goes.
        task: What the model is for.
        aggregator: What combines updates.
        judge: What scores models.
        sent: Names of the tensors that travel.
        kept: Names of those that clients keep to themselves.
        classes: Number of classes, for attacks on labels.
        unlabelled: The server's own data, for FedDF.
        tell: Called after each client.
    """

    settings: Federation
    task: Task
    aggregator: Aggregator
    judge: Judge
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    classes: int
    unlabelled: Examples | None
    tell: Progress | None


def next_round(standing: Standing, stage: Stage) -> Standing:
    """What there is after one more round."""
    began, number, settings = time.monotonic(), len(standing.history.rounds) + 1, stage.settings
    control = standing.state.tensors.get(SLOT, {})
    given = Given(standing.model, stage.sent, stage.kept, number, stage.aggregator, control)
    round_ = Round(
        tensors_of(standing.model),
        stage.aggregator,
        state=standing.state,
        checks=settings.checks,
        keep=settings.keep,
    )
    heard = _listen(standing, given, stage, round_)
    done = round_.close()
    load_state(standing.model, done.tensors)
    _distil(standing.model, done.record, heard.said, stage, number)
    after = replace(standing, clients=heard.clients, late=tuple(heard.late), state=done.state)
    score, loss = _score(after, stage)
    result = RoundResult(
        number,
        score,
        loss,
        _mean(heard.losses),
        heard.down,
        heard.up,
        time.monotonic() - began,
        done.record,
    )
    return replace(after, history=standing.history.with_round(result))


@dataclass(eq=False)
class Heard:
    """What the server heard in a round.

    Attributes:
        clients: All clients, with what those who trained have now.
        late: Updates that are still on their way.
        down: Bytes sent to clients.
        up: Bytes that came from them.
        losses: Number of examples and training loss of each client that trained.
        said: For FedDF: client -> what its model says on the server's data; None for NaN.
    """

    clients: dict[str, Client]
    late: list[Late]
    down: int = 0
    up: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    said: dict[str, Tensor | None] = field(default_factory=dict)


def _listen(standing: Standing, given: Given, stage: Stage, round_: Round) -> Heard:
    """Take the updates that are due, then let the clients of this round train in turn."""
    heard = Heard(
        dict(standing.clients), [each for each in standing.late if each.due != given.number]
    )
    for each in standing.late:
        if each.due == given.number:
            heard.up += _bytes_up(each.update)
            round_.add(each.update)
    busy = [each.update.client for each in standing.late]
    names = asked(list(standing.clients), stage.settings, given.number, busy)
    server = tensors_of(given.model)
    sent = _bytes_of({name: server[name] for name in given.sent}) + _bytes_of(given.control)
    heard.down = len(names) * sent
    for place, name in enumerate(names, start=1):
        if drops_out(stage.settings, given.number, name):
            round_.leave_out(name, "it never answered")
        elif (found := _trained(heard.clients[name], given, stage, round_)) is not None:
            _take(found, given, stage, round_, heard)
        _tell(stage, standing, name, place)
    return heard


def _take(found: Answer, given: Given, stage: Stage, round_: Round, heard: Heard) -> None:
    """Hand a client's update to the round, now or when it is due."""
    client = found.client
    heard.clients[client.name] = client
    heard.losses.append((len(client.rows), found.loss))
    delay = delay_of(stage.settings, given.number, client.name)
    if delay:
        update = as_delta(found.update, tensors_of(given.model))
        heard.late.append(Late(update, given.number + delay))
        round_.leave_out(client.name, f"it is late by {counted(delay, 'round')}")
        return
    heard.up += _bytes_up(found.update)
    if not round_.add(found.update) and stage.unlabelled is not None:
        heard.said[client.name] = _said(found, given, stage)


def _trained(client: Client, given: Given, stage: Stage, round_: Round) -> Answer | None:
    """What a client sends; None where its training diverged, which the round notes."""
    try:
        return answer(client, given, stage.settings, task=stage.task, classes=stage.classes)
    except DataError as error:
        round_.leave_out(client.name, f"its training failed: {str(error).partition('. ')[0]}")
        return None
    except AlloyError:
        raise
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"The client {shown(client.name)} cannot train on its {len(client.rows)} examples: "
            f"{type(error).__name__}: {error}"
        ) from error


def _said(found: Answer, given: Given, stage: Stage) -> Tensor | None:
    """What the model that a client sent says on the server's data; None where that is NaN."""
    model = started(given.model, {**found.client.kept, **found.update.model})
    assert stage.unlabelled is not None
    try:
        return feddf.answers(model, stage.unlabelled, stage.task)
    except DataError:
        return None


def _distil(
    model: nn.Module,
    record: RoundRecord,
    said: Mapping[str, Tensor | None],
    stage: Stage,
    number: int,
) -> None:
    """FedDF: let the new model learn what those who count say together."""
    settings = stage.settings
    heard = [said.get(each.client) for each in record.counted]
    known = [answers for answers in heard if answers is not None]
    if settings.distillation is None or stage.unlabelled is None or not known:
        return
    teacher = feddf.pooled(known, settings.pooling, stage.task)
    seed = derived_seed(settings.seed, "distillation", number)
    training = replace(settings.distillation, seed=seed)
    try:
        feddf.distil(
            model,
            stage.unlabelled,
            teacher,
            training,
            temperature=settings.temperature,
            task=stage.task,
        )
    except DataError as error:
        raise DataError(f"The distillation after round {number} failed. {error}") from error


def _score(standing: Standing, stage: Stage) -> tuple[float | None, float | None]:
    """The score of the server's model; with tensors kept to clients, the mean of theirs."""
    own = [client.kept for client in standing.clients.values() if client.kept]
    if not own:
        return stage.judge.measure(standing.model)
    return stage.judge.mean(started(standing.model, kept) for kept in own)


def _tell(stage: Stage, standing: Standing, client: str, place: int) -> None:
    if stage.tell is None:
        return
    history, rounds = standing.history, stage.settings.rounds
    before, each = len(history.rounds), wanted(len(standing.clients), stage.settings)
    score = history.rounds[-1].score if history.rounds else None
    latest = "" if score is None else f", {history.metric} {score:.4g}"
    text = f"round {before + 1} of {rounds}, {client}{latest}"
    stage.tell(text, before * each + place, rounds * each)


def _mean(losses: Sequence[tuple[int, float]]) -> float | None:
    total = sum(count for count, _ in losses)
    return sum(count * loss for count, loss in losses) / total if total else None


def _bytes_up(update: Update) -> int:
    return _bytes_of(update.model) + _bytes_of(update.control or {})


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
