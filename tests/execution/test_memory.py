"""Memory is bounded by the blocks in flight, not by the models or their largest tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MIB = 1 << 20

MERGING = """
import json, sys
from pathlib import Path
import alloykit

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

for small, large in json.load(sys.stdin):
    alloykit.merge(**small, overwrite=True)  # what is loaded once is loaded
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    alloykit.merge(**large, overwrite=True)
    print(peak() - before)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, list[str]]:
    """Four models of 2 MB, and four of 64 MB of which one tensor makes up most."""
    folder = tmp_path_factory.mktemp("models")
    paths: dict[str, list[str]] = {"small": [], "large": []}
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        values = torch.randn(1 << 20, generator=generator).bfloat16()
        for size, rows in (("small", 10), ("large", 15_000)):
            shapes = {"embed": (rows, 2048), "layers.weight": (900, 1100), "norm": (2048,)}
            state = {name: _filled(values, shape) for name, shape in shapes.items()}
            paths[size].append(str(folder / f"{size}-{number}.safetensors"))
            save_file(state, paths[size][-1])
    return paths


def _filled(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    numel = torch.Size(shape).numel()
    return values.repeat(-(-numel // len(values)))[:numel].reshape(shape)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_large_models_take_hardly_more_memory_than_small_ones(models, tmp_path):
    merges = [
        {"method": "linear", "threads": 1, "memory": "6MB"},
        {"method": "linear", "threads": 2},
        {"method": "ties", "parameters": {"density": 0.2}, "threads": 2},
        {"method": "dare_ties", "parameters": {"density": 0.5}, "max_shard_size": "20MB"},
        {"method": "karcher", "threads": 2},
    ]
    pairs = []
    for merge in merges:
        target = tmp_path / ("o" if "max_shard_size" in merge else "o.safetensors")
        pairs.append([])
        for base, *members in models.values():
            given = {"base": base} if "ties" in str(merge["method"]) else {}
            pairs[-1].append({"models": members, "output": str(target), **given, **merge})
    done = subprocess.run(
        [sys.executable, "-c", MERGING], input=json.dumps(pairs), capture_output=True, text=True,
        check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = [int(line) for line in done.stdout.split()]
    assert Path(models["large"][0]).stat().st_size > 60 * MIB
    assert len(grown) == len(merges)
    assert grown[0] < 6_000_000
    assert max(grown) < 24 * MIB, [round(each / MIB, 1) for each in grown]
