"""Where running members as one call beats running them one after the other.

Prints the time of the loop divided by the time of the batched call (above 1: batched wins), from
interleaved rounds, medians. Run: python benchmarks/batched_members.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from alloykit.ensembling.batched import batched_forward, loop_forward

MEMBERS = 8
ROUNDS = 15
BATCHES = (1, 32, 256)


def mlp() -> nn.Module:
    """64-256-256-10."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def cnn() -> nn.Module:
    """Two convolutions with batch norm, for 28 x 28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 10),
    )  # fmt: skip


def seconds(run: Callable[[], object], device: str) -> float:
    """One call, waited for."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per network and batch size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{MEMBERS} members on {device}, {torch.get_num_threads()} threads; loop / batched")
    wins = []
    for name, make, shape in (("MLP", mlp, (64,)), ("CNN", cnn, (1, 28, 28))):
        members = [make().eval().to(device).requires_grad_(False) for _ in range(MEMBERS)]
        loop, batched = loop_forward(members), batched_forward(members)
        for batch in BATCHES:
            inputs = torch.randn(batch, *shape, device=device)
            batched(inputs)
            pairs = zip(loop(inputs), batched(inputs), strict=True)
            difference = max(float((one - other).abs().max()) for one, other in pairs)
            times = [
                [seconds(partial(run, inputs), device) for run in (loop, batched)]
                for _ in range(ROUNDS)
            ]
            slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{name} batch {batch:4d}: {slow / fast:5.2f}   "
                f"(loop {slow * 1e3:.2f} ms, outputs differ by {difference:.1e})"
            )
            if slow / fast > 1.05:
                wins.append(f"{name} at batch {batch}")
    print(f"Batched wins by more than 5 %: {', '.join(wins) or 'nowhere'}.")


if __name__ == "__main__":
    main()
