"""Rounds of federated learning as candidates: what not moving the data costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from alloykit.checkpoints.wording import amount, counted
from alloykit.comparison.candidate import Candidate
from alloykit.comparison.setting import Setting
from alloykit.comparison.trial import Trial
from alloykit.data.examples import Examples
from alloykit.errors import MissingInput
from alloykit.evaluation.predicting import log_probabilities, predict
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.rounds import FederatedRun, run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.history import Epoch, History
from alloykit.training.retraining import blank, trainable
from alloykit.training.rows import hold
from alloykit.types import Kind

PROXIMAL = 0.01
"""mu of FedProx where the federation has none: the smallest that its authors tried above 0.001."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"method": "fedavg", "parameters": {}},
    "fedadam": {"method": "fedadam", "parameters": {}},
    "fedprox": {"method": "fedavg", "parameters": {}, "proximal": PROXIMAL},
    "feddf": {"method": "fedavg", "parameters": {}, "distillation": {"epochs": 1}},
}
"""What is compared besides the federation as it is asked for: name -> settings that differ."""


def federated_candidates(setting: Setting) -> Iterator[Candidate]:
    """The federation as it is asked for, and the same rounds by other methods."""
    given = setting.federation
    if given is None:
        why_not = (
            'It trains in rounds, which takes time: ask for it with federation={"rounds": ...}, '
            "or the key 'federation' of a study."
        )
        yield Candidate("federated (fedavg)", "federated", "fedavg", why_not=why_not)
        return
    own = {"method": given.method_name, "parameters": dict(given.to_json()["parameters"])}
    for name, changes in ({_own_name(given): own} | {**VARIANTS, _own_name(given): own}).items():
        yield Candidate(
            f"federated ({name}, {counted(given.rounds, 'round')})",
            "federated",
            str(changes["method"]),
            parameters=changes,
            why_not=_why_not(changes, setting),
        )


def _own_name(given: Federation) -> str:
    if given.distillation is not None:
        return "feddf"
    return "fedprox" if given.proximal else given.method_name


def _why_not(changes: Mapping[str, Any], setting: Setting) -> str:
    if not setting.partitions:
        return "There are no partitions to train on."
    distils = changes.get("distillation") or getattr(setting.federation, "distillation", None)
    if distils and server_data(setting) is None:
        return "It distils on the inputs of the train split, and none was given."
    if distils and setting.task == "tokens":
        return "FedDF knows classification and regression."
    return ""


def federated_trial(candidate: Candidate, setting: Setting) -> Trial:
    """Run the rounds, and see what the server's model says in the end."""
    if setting.federation is None:
        raise MissingInput("A comparison runs rounds only where it is told how.")
    started = time.perf_counter()
    settings = Federation.of({**setting.federation.to_json(), **candidate.parameters})
    model = trainable(blank(setting.student or setting.alike[0].module, setting.seed))
    partitions = {name: hold(examples) for name, examples in setting.partitions.items()}
    run = run_rounds(
        model,
        partitions,
        settings,
        task=setting.task,
        validation=setting.validation,
        unlabelled=server_data(setting) if settings.distillation else None,
    )
    seconds = time.perf_counter() - started
    recipe = {
        "kind": "trained",
        "learns_from": "partitions",
        "members": [],
        "start": [],
        "federation": settings.to_json(),
        "state": setting.kept.put(candidate.name, run.model.state_dict()),
    }
    kind: Kind = "values" if setting.task == "regression" else "logits"
    return Trial(
        recipe=recipe,
        validation=log_probabilities(predict(run.model, setting.validation), kind),
        test=log_probabilities(predict(run.model, setting.test), kind),
        model=run.model,
        forward_passes=1,
        fit_seconds=seconds,
        notes=tuple(_notes(run, settings)),
        history=as_history(run.history, settings).to_json(),
    )


def server_data(setting: Setting) -> Examples | None:
    """What the server distils on, without labels."""
    return setting.train if setting.unlabelled is None else setting.unlabelled


def as_history(history: FederationHistory, settings: Federation) -> History:
    """The rounds as the epochs of a training run, which the report draws."""
    rate = settings.training.learning_rate
    epochs = tuple(
        Epoch(r.number, math.nan if r.training_loss is None else r.training_loss, r.score, rate,
              r.seconds)
        for r in history.rounds
    )  # fmt: skip
    return History(
        epochs, history.metric, history.higher_is_better, best=len(epochs), steps=len(epochs)
    )


def _notes(run: FederatedRun, settings: Federation) -> Iterator[str]:
    history = run.history
    clients = {client for each in history.rounds for client in each.clients}
    yield (
        f"{counted(len(history.rounds), 'round')} over {counted(len(clients), 'client')}, whose "
        f"data stayed where they are; {amount(history.moved[-1])} of models moved"
    )
    left = sum(len(each.record.left_out) for each in history.rounds)
    if left:
        yield f"{counted(left, 'update')} left out"
    if settings.distillation:
        yield "the server distilled on inputs of its own; no label of theirs was looked at"
    if settings.keep:
        yield f"the server's model, without what clients keep to themselves ({settings.keep})"
