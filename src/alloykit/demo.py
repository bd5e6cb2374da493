"""The demo: small models on scikit-learn's digits, trained apart, and every way to combine them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alloykit.api.judging import compare
from alloykit.api.merging import save_checkpoint
from alloykit.comparison.comparing import Comparison, Progress
from alloykit.errors import MissingExtra
from alloykit.federation.partitioning import dirichlet
from alloykit.threads import one_thread_each
from alloykit.training.fitting import fit
from alloykit.training.settings import Training

PARTITIONS, CONCENTRATION, LEAST = 4, 0.3, 20
TRAIN, VALIDATION = 800, 500
START, FINE_TUNE = 80, 60


Trained = tuple[Mapping[str, nn.Module], nn.Module | None]


@dataclass(frozen=True)
class Digits:
    """The three splits, as (inputs, targets)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scene:
    """One of the demo's two comparisons.

    Attributes:
        name: Folder of its output.
        title: Headline.
        story: What happened to the models before.
        train: (data, seed) -> members by name, and the base that they were fine-tuned from, if any.
        training: How students and a model on all partitions learn; None leaves them out.
    """

    name: str
    title: str
    story: str
    train: Callable[[Digits, int], Trained]
    training: Training | None = None


def run_scene(
    scene: Scene, output: Path, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Comparison, Path]:
    """Train a scene's members, save them, compare them, and write the report."""
    # On networks this small threads wait for one another longer than they work.
    with one_thread_each():
        return _run(scene, output, seed, progress)


def _run(
    scene: Scene, output: Path, seed: int, progress: Progress | None
) -> tuple[Comparison, Path]:
    data = digits(seed)
    if progress is not None:
        progress(f"training {scene.name}", 0, 1)
    folder = output / scene.name
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        members, base = scene.train(data, seed)
    for name, member in members.items():
        save_checkpoint(member, folder / f"{name}.safetensors", overwrite=True)
    found = compare(
        members,
        validation=data.validation,
        test=data.test,
        train=data.train if scene.training else None,
        training=scene.training,
        base=base,
        output=folder,
        overwrite=True,
        title=scene.title,
        seed=seed,
        progress=progress,
    )
    return found, folder / "report.html"


def digits(seed: int = 0) -> Digits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, in [0, 1]: 800 / 500 / 497 examples.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra(
            "The demo's data come with scikit-learn, which is not installed. "
            "Install it with: pip install 'alloykit[demo]'"
        ) from None
    inputs, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(inputs))
    images = torch.tensor(inputs[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(targets[order])
    ends = (slice(0, TRAIN), slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None))
    return Digits(*((images[part], labels[part]) for part in ends))


def mlp() -> nn.Module:
    """Two linear layers: 64 -> 48 -> 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def cnn() -> nn.Module:
    """Two convolutions with BatchNorm, pooling, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def _partitions(data: Digits, seed: int) -> Trained:
    inputs, labels = data.train
    parts = dirichlet(labels, PARTITIONS, seed, concentration=CONCENTRATION, least=LEAST)
    builders = {"mlp-1": mlp, "mlp-2": mlp, "cnn-3": cnn, "cnn-4": cnn}
    members = {}
    for (name, build), rows in zip(builders.items(), parts, strict=True):
        members[name] = build()
        fit(members[name], inputs[rows], labels[rows], epochs=40, batch_size=32, seed=seed)
    return members, None


def _fine_tunes(data: Digits, seed: int) -> Trained:
    inputs, labels = data.train
    start = cnn()
    fit(start, inputs[:START], labels[:START], epochs=15, batch_size=32, seed=seed)
    members = {}
    for index in range(PARTITIONS):
        begin = START + index * FINE_TUNE
        rows = slice(begin, begin + FINE_TUNE)
        tuned = copy.deepcopy(start)
        fit(tuned, inputs[rows], labels[rows], epochs=20, batch_size=32, learning_rate=3e-3,
            seed=seed + index)  # fmt: skip
        members[f"tune-{index + 1}"] = tuned
    return members, start


SCENES = (
    Scene(
        "partitions",
        "Four models of two architectures, trained on skewed partitions",
        "Each model saw its own quarter of the digits, with its own mix of classes. Their weights "
        "have little in common; their predictions do.",
        _partitions,
        Training(epochs=40, batch_size=32),
    ),
    Scene(
        "fine-tunes",
        "Four fine-tunes of one shared start",
        "One small network was trained a little, then fine-tuned four times on different data. "
        "They lie in one basin: averaging their weights gives one model at the price of one.",
        _fine_tunes,
    ),
)
