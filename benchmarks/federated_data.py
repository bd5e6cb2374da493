"""What the federated benchmarks share: Fashion-MNIST by rows, and a small network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from alloykit.data.sources import load_split
from alloykit.data.split_spec import SplitSpec


def images(data: Path, part: str, rows: str) -> tuple[Tensor, Tensor]:
    """Rows such as ":1000" of the "train" or "t10k" files, and their labels."""
    folder = data.resolve()
    files = {name: str(next(folder.glob(f"{part}-{name}-idx*"))) for name in ("images", "labels")}
    batches = list(load_split(SplitSpec(**files, rows=rows), "train", folder).batches())
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([y for _, y in batches])


def strided_cnn(seed: int) -> nn.Module:
    """Two strided convolutions and two linear layers, 106,122 parameters, no normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Percent of the examples whose largest output is their label's."""
    return 100.0 * float((outputs.argmax(1) == labels).float().mean())
