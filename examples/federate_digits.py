"""Six clients with digits of their own: rounds, a poisoned client, and one model on all data."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit
from alloykit.federation.partitioning import dirichlet
from alloykit.federation.round_picture import picture
from alloykit.federation.rounds import FederatedRun

CLIENTS, ROUNDS = 6, 12


def net() -> nn.Module:
    """A small network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    """Federate plainly and robustly, and report on test."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images / 16.0, dtype=torch.float32)[order], torch.tensor(labels)[order]
    validation, test = (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])
    parts = dirichlet(y[:1000], CLIENTS, seed=0, concentration=1.0)
    partitions = {f"client {n}": (x[rows], y[rows]) for n, rows in enumerate(parts)}

    def federated(**settings: Any) -> FederatedRun:
        return alloykit.federate(
            net(), partitions, rounds=ROUNDS, training={"epochs": 3, "learning_rate": 0.1},
            validation=validation, **settings,
        )  # fmt: skip

    poisoned = {"attacks": {"client 0": "sign_flip"}}
    runs = {
        "honest, fedavg": federated(),
        "one poisoned, fedavg": federated(**poisoned),
        "one poisoned, median": federated(**poisoned, method="median"),
    }
    union = alloykit.retrain(
        net(), partitions, training={"epochs": ROUNDS, "batch_size": 32}, validation=validation
    )
    models = {**{name: run.model for name, run in runs.items()}, "on the union": union.model}
    for name, model in models.items():
        with torch.no_grad():
            accuracy = float((model(test[0]).argmax(1) == test[1]).float().mean())
        print(f"{name:22} test accuracy {accuracy:.3f}")
    picture({name: run.history for name, run in runs.items()}, "rounds.png")

    last = runs["one poisoned, fedavg"].history.rounds[-1].record
    for client in last.counted:
        print(f"{client.client}: weight {client.coefficient:.2f}, moved by {client.norm:.2f}")


if __name__ == "__main__":
    main()
