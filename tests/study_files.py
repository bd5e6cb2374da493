"""Small studies on disk: two classes of points, models that tell them apart, an importable net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import alloykit
from alloykit.training.fitting import fit

NETS = """
from torch import nn

def small(width=8, slope=0.0):
    return nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(slope), nn.Linear(width, 3))

def normed():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def four_classes():
    return nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.0), nn.Linear(8, 4))

def value():
    return nn.Linear(2, 1)
"""


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around three centres, and which centre each belongs to."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    return (centres[labels] + random.normal(0, 1.0, (count, 2))).astype(np.float32), labels


def small_net(width: int = 8) -> nn.Module:
    """The net that ``nets:small`` builds."""
    return nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.0), nn.Linear(width, 3))


def trained(seed: int, start: nn.Module | None = None) -> nn.Module:
    """A small net trained on its own points."""
    torch.manual_seed(seed)
    net = small_net()
    if start is not None:
        net.load_state_dict(start.state_dict())
    inputs, labels = blobs(120, seed)
    fit(net, torch.tensor(inputs), torch.tensor(labels), epochs=6, batch_size=16, seed=seed)
    return net


def write_study(folder: Path, **changes: Any) -> Path:
    """A study of three fine-tunes of one start in ``folder``; ``changes`` replace its keys."""
    (folder / "nets.py").write_text(NETS)
    start = trained(0)
    names = []
    for seed in (1, 2, 3):
        names.append(f"tune{seed}")
        alloykit.save_checkpoint(trained(seed, start), folder / f"tune{seed}.safetensors")
    for name, count, seed in (("validation", 200, 10), ("test", 300, 11)):
        inputs, labels = blobs(count, seed)
        np.savez(folder / f"{name}.npz", x=inputs, y=labels)
    study: dict[str, Any] = {
        "architecture": "nets:small",
        "members": [{"checkpoint": f"{name}.safetensors"} for name in names],
        "data": {"validation": {"npz": "validation.npz"}, "test": {"npz": "test.npz"}},
        "resamples": 100,
    }
    study.update(changes)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in study.items() if v is not None}))
    return path
