"""Small trained models on scikit-learn's digits, for the pages' set-ups and their files."""

from __future__ import annotations

import copy
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Split = tuple[Tensor, Tensor]


class Digits(NamedTuple):
    """Three disjoint splits of images [example, 64] with their labels."""

    train: Split
    validation: Split
    test: Split


@cache
def digits() -> Digits:
    """1,000 digits to train on, 397 that choose, 400 that report."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16, dtype=torch.float32)
    y = torch.tensor(labels[order])
    return Digits((x[:1000], y[:1000]), (x[1000:1397], y[1000:1397]), (x[1397:], y[1397:]))


def net(width: int = 32, *, batch_norm: bool = False) -> nn.Sequential:
    """A classifier of digits."""
    norm = [nn.BatchNorm1d(width)] if batch_norm else []
    return nn.Sequential(nn.Linear(64, width), *norm, nn.ReLU(), nn.Linear(width, 10))


def trained(model: nn.Module, seed: int, *, steps: int = 60, rate: float = 0.2) -> nn.Module:
    """The model after a short training; the seed decides which examples it saw."""
    (x, y), generator = digits().train, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def base(width: int = 32, *, batch_norm: bool = False) -> nn.Module:
    """A model trained a little."""
    torch.manual_seed(0)
    return trained(net(width, batch_norm=batch_norm), seed=0, steps=40)


def fine_tunes(count: int = 3, *, batch_norm: bool = False) -> list[nn.Module]:
    """Models fine-tuned from one base on different draws of the data."""
    start = base(batch_norm=batch_norm)
    return [trained(copy.deepcopy(start), seed, steps=30) for seed in range(1, count + 1)]


def independent(count: int = 2) -> list[nn.Module]:
    """Models of one architecture trained from different starts."""
    models = []
    for seed in range(1, count + 1):
        torch.manual_seed(seed)
        models.append(trained(net(), seed, steps=80))
    return models
