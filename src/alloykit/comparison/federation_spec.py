"""Rounds of a federation, as a study file says them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from alloykit.comparison.training_spec import ClientTrainingSpec, Strict, TrainingSpec
from alloykit.federation.partitioning import PARTITIONS
from alloykit.federation.settings import Federation


class DealSpec(Strict):
    """How the examples of one split are dealt out to simulated clients."""

    clients: int = Field(ge=1, description="How many.")
    how: Literal["iid", "dirichlet", "shards"] = Field(
        "dirichlet", description="Evenly, skewed by label, or in shards of sorted labels."
    )
    concentration: float | None = Field(
        None, gt=0, description="Of dirichlet, 0.3 by default; less is more skewed."
    )
    per_client: int | None = Field(
        None, ge=1, description="Of shards, 2 by default: how many each client gets."
    )
    least: int = Field(2, ge=1, description="Examples that every client must have.")
    seed: int = Field(0, ge=0, description="Of the dealing.")


class FederationSpec(Strict):
    """How clients and a server make one model; the settings of ``federate``."""

    rounds: int = Field(10, description="How many.")
    method: str = Field("fedavg", description="An aggregator or a merge method.")
    parameters: dict[str, Any] = Field(default={}, description="Of that method.")
    fraction: float = Field(1.0, description="Part of the clients that each round asks.")
    clients_per_round: int | None = Field(
        None, description="How many it asks, in place of a fraction."
    )
    training: ClientTrainingSpec | None = Field(
        None, description="How each client trains in a round; one epoch of SGD by default."
    )
    checks: dict[str, Any] = Field(
        default={}, description="Which updates count: min_clients, max_norm, on_bad and others."
    )
    proximal: float = Field(0.0, description="mu of FedProx.")
    keep: list[str] = Field(
        default=[], description="Globs of tensors that each client keeps to itself (FedBN)."
    )
    drop_out: float = Field(0.0, description="Probability that a client never answers.")
    stragglers: float = Field(0.0, description="Probability that a client is slow.")
    delay: int = Field(
        0, description="0: slow clients train fewer epochs; k: they answer up to k rounds later."
    )
    attacks: dict[str, str | dict[str, Any]] = Field(
        default={}, description="Client -> sign_flip, noise, nan, label_flip or claim."
    )
    distillation: TrainingSpec | None = Field(
        None, description="FedDF: how the server trains on data.unlabelled after each round."
    )
    temperature: float = Field(1.0, description="Of that distillation.")
    pooling: Literal["logits", "probabilities"] = Field(
        "logits", description="What the clients' answers are the mean of."
    )
    seed: int = Field(0, description="Of everything that is drawn.")


def settings_of(spec: FederationSpec) -> Federation:
    """The settings that a study asks for.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
    """
    return Federation.of(spec.model_dump(exclude_unset=True))


def dealt(labels: Tensor, spec: DealSpec) -> dict[str, Tensor]:
    """Client -> positions of its examples.

    Raises:
        InvalidParameter: A number that belongs to another way of dealing.
        DataError: Too few examples.
    """
    own = {"concentration": spec.concentration, "per_client": spec.per_client}
    given = {name: value for name, value in own.items() if value is not None}
    rows = PARTITIONS[spec.how](labels, spec.clients, spec.seed, least=spec.least, **given)
    width = len(str(spec.clients))
    return {f"client {number:0{width}}": each for number, each in enumerate(rows, start=1)}
