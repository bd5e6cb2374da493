"""Federations in child processes that kill themselves at random moments; print how they ended.

Run as a script with a folder and a seed: what the resumed runs lead to is compared, bit for bit,
with a run that nobody interrupted.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.federation.rounds import run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.rows import Rows

KILLS = 5
CASES: dict[str, dict[str, Any]] = {
    "fedadam": {"rounds": 100, "method": "fedadam", "keep": ["1.*"], "clients_per_round": 2,
                "drop_out": 0.1, "proximal": 0.1},
    "scaffold": {"rounds": 30, "method": "scaffold", "fraction": 0.7},
    "fedbuff": {"rounds": 30, "method": "fedbuff", "stragglers": 0.5, "delay": 3},
    "feddf": {"rounds": 18, "distillation": {"epochs": 1}, "attacks": {"c": "noise"}},
}  # fmt: skip


def run(case: str, folder: Path | None, life: tuple[int, float] | None = None) -> str:
    """One federation and what its model and history were; it dies some milliseconds after a call."""
    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if life is not None and calls == life[0]:
            threading.Timer(life[1], os.kill, (os.getpid(), signal.SIGKILL)).start()

    torch.manual_seed(0)
    inputs, labels = torch.randn(48, 3), torch.randint(2, (48,))
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
    settings = Federation.of({"training": {"batch_size": 8}, **CASES[case]})
    found = run_rounds(
        model,
        {name: Rows(inputs[i::4], labels[i::4]) for i, name in enumerate("abcd")},
        settings,
        validation=as_examples((inputs, labels), "validation"),
        unlabelled=as_examples((inputs, labels), "train") if settings.distillation else None,
        snapshot=folder,
        progress=progress,
    )
    digest = hashlib.sha256()
    tensors = [
        *found.model.state_dict().values(),
        *(t for k in found.kept.values() for t in k.values()),
    ]
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    for each in found.history.rounds:
        digest.update(repr((each.number, each.score, each.bytes_up, each.record)).encode())
    return digest.hexdigest()


def killed(case: str, folder: Path, life: tuple[int, float]) -> bool:
    """Whether the child died by the signal."""
    child = os.fork()
    if child == 0:
        run(case, folder, life)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill each case several times, and compare."""
    place, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    torch.set_num_threads(1)
    for case, given in CASES.items():
        expected = run(case, None)
        # Two clients a round at least; so many calls that no life reaches the end.
        calls = 2 * given["rounds"] // (KILLS + 2)
        lives = [(draw.randint(1, calls), draw.uniform(0, 0.01)) for _ in range(KILLS)]
        deaths = sum(killed(case, place / case, life) for life in lives)
        same = run(case, place / case) == expected
        print(f"{case} killed {deaths} times, {'same' if same else 'other'} bits")


if __name__ == "__main__":
    main()
