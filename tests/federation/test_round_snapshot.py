"""What lies on disk between two rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.errors import CheckpointError, OutputExists
from alloykit.federation.round_snapshot import FILE
from alloykit.federation.rounds import FederatedRun, run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.rows import Rows

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def run(folder: Path | None, *, seed: int = 0, width: int = 4, inputs: torch.Tensor = INPUTS,
        validated: bool = True, **settings: Any) -> FederatedRun:  # fmt: skip
    return run_rounds(
        net(seed, width),
        {name: Rows(inputs[i::2], LABELS[i::2]) for i, name in enumerate("ab")},
        Federation(**{"rounds": 3, **settings}),
        validation=as_examples((INPUTS, LABELS), "validation") if validated else None,
        snapshot=folder,
    )


def bits(found: FederatedRun) -> list[torch.Tensor]:
    return [t.clone() for t in found.model.state_dict().values()]


def test_a_run_goes_on_with_more_rounds_to_the_same_bits(tmp_path):
    straight = run(None, rounds=5, method="fedavgm")
    run(tmp_path, rounds=2, method="fedavgm")
    # From other initial weights: what was started counts.
    resumed = run(tmp_path, rounds=5, method="fedavgm", seed=1)
    assert all(map(torch.equal, bits(straight), bits(resumed)))
    assert straight.history.scores == resumed.history.scores
    assert [r.record for r in straight.history.rounds] == [r.record for r in resumed.history.rounds]


def test_a_finished_run_is_returned_at_once(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, seed=1)
    assert all(map(torch.equal, bits(first), bits(again)))
    assert first.history == again.history
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_another_run_is_refused_with_every_difference(tmp_path):
    run(tmp_path)
    changed = INPUTS.clone()
    changed[3, 1] += 1
    with pytest.raises(OutputExists, match=f"{FILE} is the snapshot of another run") as caught:
        run(tmp_path, inputs=changed, validated=False, method="median", proximal=0.5,
            training={"epochs": 2})  # fmt: skip
    said = str(caught.value)
    for line in (
        "federation.method   snapshot: fedavg   now: median",
        "federation.proximal   snapshot: 0.0   now: 0.5",
        "federation.training.epochs   snapshot: 1   now: 2",
        "validation   snapshot: accuracy on blake2b:",
    ):
        assert line in said
    with pytest.raises(
        OutputExists,
        match=r"model.0.weight   snapshot: torch.float32 \[4, 3\]   now: torch.float32 \[5, 3\]",
    ):
        run(tmp_path, width=5)
    with pytest.raises(
        OutputExists, match=r"clients.b   snapshot: 20 rows \w+   now: 20 rows"
    ) as caught:
        run(tmp_path, inputs=changed)
    assert "clients.a" not in str(caught.value)


def test_fewer_rounds_than_there_are(tmp_path):
    run(tmp_path)
    with pytest.raises(OutputExists, match="is 3 rounds far, and 2 are asked for"):
        run(tmp_path, rounds=2)


def test_a_damaged_snapshot(tmp_path):
    run(tmp_path)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-3] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="its content does not match its digest"):
        run(tmp_path)


def test_scores_that_are_nan_survive(tmp_path):
    bad = INPUTS * torch.inf
    parts = {name: Rows(bad[i::2], LABELS[i::2]) for i, name in enumerate("ab")}
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    for _ in range(2):
        found = run_rounds(model, parts, Federation(rounds=1), snapshot=tmp_path,
                           validation=as_examples((INPUTS, LABELS), "validation"))  # fmt: skip
        (only,) = found.history.rounds
        assert only.score != only.score
        assert only.training_loss is None
