"""Four tasks, one backbone, four frozen heads: what the study of multi-task merging trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alloykit.data.idx_file import read_images_and_labels
from alloykit.training.fitting import fit

SETS = ("mnist", "fashion-mnist")
TASKS = tuple(f"{name} {classes}" for name in ("MNIST", "Fashion") for classes in ("0-4", "5-9"))
CLASSES, PIXELS = 5, 784
TRAIN, VALIDATION, STATISTICS = 15_000, 1_000, 1_000
"""Images of each task: for fine-tuning, for choosing, and (of the first) for statistics."""

Split = tuple[Tensor, Tensor]
"""Inputs [image, 785], pixels and then the number of the task, and labels 0 to 4."""


class MultiTask(nn.Module):
    """An MLP, and a head of five classes for every task; the last input says which task it is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(PIXELS, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, 256), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.Linear(256, CLASSES * len(TASKS))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [image, 5] of each image's own task."""
        logits = self.heads(self.backbone(inputs[:, :PIXELS])).unflatten(1, (-1, CLASSES))
        task = inputs[:, PIXELS].long().reshape(-1, 1, 1).expand(-1, 1, CLASSES)
        return logits.gather(1, task).squeeze(1)


@dataclass(frozen=True)
class Data:
    """The splits of every task, in the order of ``TASKS``."""

    start: list[Split]
    train: list[Split]
    validation: list[Split]
    statistics: list[Split]
    test: list[Split]


def read_data(folder: Path, seed: int, start_images: int) -> Data:
    """MNIST and Fashion-MNIST, each split into classes 0-4 and 5-9; the seed draws the splits.

    Args:
        folder: Holds mnist/ and fashion-mnist/.
        seed: Of the draw.
        start_images: Images of each task for the joint start.
    """
    training = [half for name in SETS for half in _halves(folder / name, "train")]
    test = [half for name in SETS for half in _halves(folder / name, "t10k")]
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Split]] = []
    for task, (images, labels) in enumerate(training):
        order = torch.randperm(len(labels), generator=generator)
        ends = start_images + torch.tensor([0, TRAIN, TRAIN + VALIDATION])
        rows = [*torch.tensor_split(order, ends)[:3]]
        rows.append(rows[1][:STATISTICS])
        parts.append([_with_task(images[r], labels[r], task) for r in rows])
    start, train, validation, statistics = map(list, zip(*parts, strict=True))
    return Data(
        start, train, validation, statistics,
        [_with_task(images, labels, task) for task, (images, labels) in enumerate(test)],
    )  # fmt: skip


def joined(splits: list[Split]) -> Split:
    """Several splits as one."""
    inputs, labels = zip(*splits, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def trained(data: Data, seed: int) -> tuple[MultiTask, list[MultiTask], MultiTask]:
    """The joint start; from it one fine-tune per task, heads frozen; and one on all tasks."""
    torch.manual_seed(seed)
    start = MultiTask()
    fit(start, *joined(data.start), epochs=15, batch_size=32, learning_rate=1e-3, seed=seed)
    start.heads.requires_grad_(False)
    members = []
    for task, split in enumerate([*data.train, joined(data.train)]):
        member = copy.deepcopy(start)
        fit(member, *split, epochs=4, batch_size=128, learning_rate=5e-4, seed=seed + task)
        members.append(member)
    return start, members[:-1], members[-1]


def accuracy(model: nn.Module, splits: list[Split]) -> list[float]:
    """Accuracy on every split, in percent."""
    with torch.no_grad():
        return [
            100 * float((model(inputs).argmax(1) == labels).float().mean())
            for inputs, labels in splits
        ]


def _halves(folder: Path, stem: str) -> list[Split]:
    files = (next(folder.glob(f"{stem}-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1"))
    images, labels = map(torch.from_numpy, read_images_and_labels(*files))
    flat = images.reshape(len(images), PIXELS).float() / 255
    halves = [labels.long() // CLASSES == half for half in (0, 1)]
    return [(flat[rows], labels[rows].long() % CLASSES) for rows in halves]


def _with_task(images: Tensor, labels: Tensor, task: int) -> Split:
    return torch.cat([images, torch.full((len(images), 1), float(task))], 1), labels
