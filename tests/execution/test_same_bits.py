"""The bytes of a result depend on what is merged and how, not on how the work is cut and shared."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import alloykit
from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.inputs import Inputs
from alloykit.execution.limits import Limits
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.execution.to_files import Destination, merge_to_files

CUTS = ((64 << 10, 1), (64 << 10, 4), (100_000, 2), (1 << 20, 3), (64 << 20, 1))
"""Bytes of a block, and threads."""

METHODS = [
    ("linear", {}),
    ("exponential", {"decay": 0.5}),
    ("task_arithmetic", {}),
    ("slerp", {"t": 0.3}),
    ("karcher", {}),
    ("geometric_median", {}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {}),
    ("nuslerp", {"flatten": False, "row_wise": True}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "scope": "model"}),
    ("dare_ties", {"density": 0.5}),
    ("della_linear", {"density": 0.5, "epsilon": 0.1}),
    ("iso_c", {}),
    ("tsv_m", {}),
]

SHAPES = {
    "wide.weight": ((131, 517), torch.bfloat16),
    "tall.weight": ((257, 259), torch.float32),
    "thin.weight": ((2, 33_001), torch.float16),
    "vector": ((70_001,), torch.bfloat16),
    "filters.weight": ((129, 3, 3, 3), torch.bfloat16),
    "spectrum": ((33, 77), torch.complex64),
    "scalar": ((), torch.float32),
    "one": ((1,), torch.bfloat16),
    "nothing": ((0, 5), torch.bfloat16),
    **{f"tiny.{size}": ((size,), torch.float32) for size in range(1, 30)},
}


def states() -> list[dict[str, torch.Tensor]]:
    """A base and three fine-tunes, of sizes that no block, page or vector register divides."""
    generator = torch.Generator().manual_seed(0)
    every = []
    for scale in (1.0, 0.1, 0.1, 0.1):
        state = {"ids": torch.arange(20_000)}
        for name, (shape, dtype) in SHAPES.items():
            wide = torch.complex64 if dtype.is_complex else torch.float32
            values = torch.randn(shape, generator=generator, dtype=wide) * scale
            state[name] = (values + every[0][name] if every else values).to(dtype)
        every.append(state)
    return every


@pytest.fixture(scope="module")
def checkpoints() -> list[MemoryCheckpoint]:
    return [MemoryCheckpoint(s, id=n) for s, n in zip(states(), ("base", *"abc"), strict=True)]


def written(plan, base, members, path: Path, limits: Limits, **options) -> dict[str, str]:
    """Name of each file -> SHA-256."""
    arithmetic = Arithmetic(plan, Inputs.of(plan, members, base))
    merge_to_files(arithmetic, Destination(path, {}, overwrite=True, **options), limits=limits)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_blocks_and_threads_do_not_change_a_bit(checkpoints, tmp_path, method, parameters):
    base, *members = checkpoints
    members = members[:2] if method in ("slerp", "nuslerp") else members
    plan = plan_merge(members, method, parameters, base=base)
    found = [
        written(
            plan, base, members, tmp_path / "o.safetensors", Limits(threads=threads, block=block)
        )
        for block, threads in CUTS
    ]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_shards_hold_the_same_bits(checkpoints, tmp_path, method):
    base, *members = checkpoints
    plan = plan_merge(members, method, {} if method == "linear" else {"density": 0.5}, base=base)
    found = [
        written(
            plan, base, members, tmp_path / "o", Limits(threads=t, block=b), max_shard_size=99_999
        )
        for b, t in CUTS
    ]
    assert len(found[0]) > 4
    assert all(each == found[0] for each in found)
    merged = merge_in_memory(plan, members, base)
    opened = alloykit.open_checkpoint(tmp_path / "o")
    for name, tensor in merged.items():
        assert torch.equal(as_bytes(opened.read(name)), as_bytes(tensor))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{name}.safetensors" for name in ("base", *"abc")]
    for state, path in zip(states(), paths, strict=True):
        kept = {n: t for n, t in state.items() if n.startswith(("tiny", "wide", "ids"))}
        save_file(kept, path)
    return paths


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("karcher", {}),
        ("ties", {"density": [0.2, 0.5, 0.8]}),
        ("dare_linear", {"density": {"tiny*": [0.4, 0.5, 0.6], "*": 0.5}}),
    ],
)
def test_the_order_of_the_models_changes_no_byte_of_the_file(files, tmp_path, method, parameters):
    base, *models = files
    weights = [0.5, 0.3, 0.2]
    digests = set()
    for order in itertools.permutations(range(3)):
        alloykit.merge(
            [models[i] for i in order], method, weights=[weights[i] for i in order],
            parameters={k: _permuted(v, order) for k, v in parameters.items()},
            base=None if method in ("linear", "karcher") else base,
            output=tmp_path / "o.safetensors", overwrite=True,
        )  # fmt: skip
        digests.add(hashlib.sha256((tmp_path / "o.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


def _permuted(value, order):
    if isinstance(value, dict):
        return {glob: _permuted(each, order) for glob, each in value.items()}
    return [value[i] for i in order] if isinstance(value, list) else value


def test_an_ordered_method_keeps_the_order(files, tmp_path):
    digests = set()
    for index, models in enumerate((files[1:], files[:0:-1])):
        path = tmp_path / f"{index}.safetensors"
        alloykit.merge(models, "exponential", parameters={"decay": 0.5}, output=path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 2
