"""The average of members whose units were matched first, as a row of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import alloykit


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    other = net(0)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
        other[2].bias.copy_(model[2].bias)
    return other


def points(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(seed))
    return x, net(1)(x).argmax(1).detach()


def test_shuffled_copies_average_to_the_model_itself_once_they_are_aligned(tmp_path: Path) -> None:
    members = {"one": net(1), "two": shuffled(net(1), 2), "three": shuffled(net(1), 3)}
    found = alloykit.compare(
        members, validation=points(1), test=points(2), candidates=["align", "linear"],
        output=tmp_path, resamples=100,
    )  # fmt: skip
    assert found["aligned average"].row.test["accuracy"] == 1.0
    assert found["linear"].row.test["accuracy"] < 0.95
    x, _ = points(3)
    assert torch.allclose(found["aligned average"].model()(x), net(1)(x), atol=1e-5)
    saved = found["aligned average"].save(tmp_path / "aligned.safetensors")
    assert alloykit.open_checkpoint(saved).read("0.weight") == pytest.approx(
        net(1)[0].weight.detach(), abs=1e-6
    )
    for name, seed in (("two", 2), ("three", 3)):
        assert torch.equal(members[name][0].weight, shuffled(net(1), seed)[0].weight)


class Odd(nn.Module):
    """What it does depends on the values, which no graph shows."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = net(seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x if float(x.sum()) > 0 else -x)
        return found


def test_members_that_cannot_be_traced_are_skipped_with_the_reason() -> None:
    found = alloykit.compare(
        {"one": Odd(1), "two": Odd(2)}, validation=points(1), test=points(2),
        candidates=["align"], resamples=100,
    )  # fmt: skip
    row = next(row for row in found.rows if row.candidate == "aligned average")
    assert row.status == "skipped"
    assert "cannot be matched" in row.reason
