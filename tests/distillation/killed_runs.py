"""Distil in child processes that kill themselves at random steps; print how it ended.

Run as a script with a folder: whatever comes out of the resumed runs is compared, bit for bit,
with a run that nobody interrupted.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from alloykit.api.distilling import distill
from alloykit.training.settings import Training

KILLS = 4


def run(folder: Path | None, kill_at: int | None) -> dict[str, torch.Tensor]:
    """One distillation; it dies after so many calls of progress."""
    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(0)
    inputs, targets = torch.randn(96, 4), torch.randint(3, (96,))
    teachers = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in "ab"]
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    found = distill(
        student,
        teachers,
        train=[(inputs[i : i + 8], targets[i : i + 8]) for i in range(0, 96, 8)],
        validation=(torch.randn(20, 4), torch.randint(3, (20,))),
        training=Training(epochs=3, batch_size=16, accumulate=2, learning_rate=1e-2),
        snapshot=folder,
        every=0,
        progress=progress,
    )
    return found.student.state_dict()


def killed(folder: Path, kill_at: int) -> bool:
    """Whether the child died by the signal."""
    child = os.fork()
    if child == 0:
        run(folder, kill_at)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill several runs several times each, and compare."""
    place, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    expected = run(None, None)
    draw = random.Random(seed)
    for case in range(2):
        folder = place / str(case)
        # The teacher takes 12 calls; a resumed run makes fewer than the first.
        deaths = [killed(folder, draw.randint(1, 14 if case else 20)) for _ in range(KILLS)]
        found = run(folder, None)
        same = all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        print(f"killed {sum(deaths)} times, {'same' if same else 'other'} bits")


if __name__ == "__main__":
    main()
