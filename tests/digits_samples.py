"""A small real problem: fine-tunes of one start on scikit-learn's digits, one of them bad."""

from __future__ import annotations

import copy
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.examples import as_examples
from alloykit.evaluation.metrics import metric
from alloykit.soups.judge import Judge
from alloykit.training.fitting import fit


@cache
def splits() -> dict[str, tuple[Tensor, Tensor]]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(digits.data / 16.0, dtype=torch.float32)[order]
    targets = torch.tensor(digits.target)[order]
    return {
        "train": (inputs[:400], targets[:400]),
        "validation": (inputs[400:657], targets[400:657]),  # 257: a last batch of one
        "test": (inputs[700:1200], targets[700:1200]),
    }


def network(batch_norm: bool) -> nn.Module:
    layers = [nn.BatchNorm1d(24)] if batch_norm else []
    return nn.Sequential(nn.Linear(64, 24), *layers, nn.ReLU(), nn.Linear(24, 10))


@cache
def members(batch_norm: bool = False) -> dict[str, nn.Module]:
    inputs, targets = splits()["train"]
    torch.manual_seed(0)
    start = network(batch_norm)
    fit(start, inputs, targets, epochs=4, batch_size=32, learning_rate=5e-3)
    found = {"start": start}
    for seed in range(3):
        tuned = copy.deepcopy(start)
        rows = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:250]
        fit(tuned, inputs[rows], targets[rows], epochs=4, batch_size=32, seed=seed)
        found[f"tuned {seed}"] = tuned
    bad = copy.deepcopy(start)
    fit(bad, inputs, targets.roll(1), epochs=3, batch_size=32, learning_rate=1e-2)
    found["bad"] = bad
    for net in found.values():
        net.zero_grad(set_to_none=True)
    return found


def checkpoints(batch_norm: bool = False) -> list[MemoryCheckpoint]:
    every = members(batch_norm).items()
    return [MemoryCheckpoint(net.state_dict(), id=name) for name, net in every]


def judge(batch_norm: bool = False, measure: str = "accuracy") -> Judge:
    validation = as_examples(splits()["validation"], "validation")
    return Judge(
        network(batch_norm), validation, metric(measure), "classification", batch_norm=validation
    )


def single_values(batch_norm: bool, measure: str) -> list[float]:
    """What each member as it is scores on validation."""
    judging = judge(batch_norm, measure)
    return [
        judging.value(net.state_dict(), reestimate=False) for net in members(batch_norm).values()
    ]
