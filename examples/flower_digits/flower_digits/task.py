"""The model, the data of each client, and how a client trains."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from alloykit.federation.partitioning import dirichlet
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.order import derived_seed
from alloykit.training.rows import Rows
from alloykit.training.settings import Training

HELD_OUT = 360

torch.set_num_threads(1)


def new_model(seed: int = 0) -> nn.Module:
    """The model that the server starts with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> tuple[Rows, Rows]:
    """The digits that clients have, and those that the server tests with."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return Rows(x[:-HELD_OUT], y[:-HELD_OUT]), Rows(x[-HELD_OUT:], y[-HELD_OUT:])


def rows_of(client: int, clients: int) -> Rows:
    """The digits of one client: some classes more than others."""
    rows, _ = digits()
    positions = dirichlet(rows.targets, clients, concentration=1.0, least=20)[client]
    return Rows(rows.inputs[positions], rows.targets[positions])


def training(epochs: int, seed: int, server_round: int, client: int) -> Training:
    """How a client trains in a round: in an order that is the same wherever it runs."""
    return Training(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.1,
        weight_decay=0.0,
        schedule="constant",
        optimizer="sgd",
        momentum=0.9,
        seed=derived_seed(seed, "client", server_round, str(client)),
    )


def fit(model: nn.Module, rows: Rows, settings: Training) -> float:
    """Train in place; the mean loss of the last epoch."""
    return train(model, rows, loss_of("classification"), settings).losses[-1]


def accuracy(model: nn.Module, rows: Rows) -> float:
    """Fraction of digits that the model names correctly."""
    with torch.no_grad():
        named: Tensor = model.eval()(rows.inputs).argmax(1)
    return float((named == rows.targets).float().mean())
