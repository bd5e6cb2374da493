from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors import safe_open

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, OutputExists
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.inputs import Inputs
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.execution.to_files import Destination, merge_to_files
from strategies import state_dicts


def members(*states):
    return [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]


def of(*values, dtype=torch.float32):
    return {"w": torch.tensor(values).to(dtype)}


def to_file(checkpoints, path: Path, *, metadata=None, **options) -> Path:
    plan = plan_merge(checkpoints)
    arithmetic = Arithmetic(plan, Inputs.of(plan, checkpoints))
    return merge_to_files(arithmetic, Destination(path, metadata or {}, **options))


@given(state_dicts(2))
def test_a_file_holds_what_memory_holds(tmp_path_factory, states):
    checkpoints = members(*states)
    path = tmp_path_factory.mktemp("merged") / "out.safetensors"
    assert to_file(checkpoints, path, metadata={"made": "here"}) == path
    opened, expected = open_checkpoint(path), merge_in_memory(plan_merge(checkpoints), checkpoints)
    assert opened.specs().keys() == expected.keys()
    for name, tensor in expected.items():
        read = opened.read(name)
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(as_bytes(read), as_bytes(tensor))
    with safe_open(path, "pt") as file:
        if expected["head.weight"].numel():
            assert opened.specs()["head.weight"].place == opened.specs()["layer0.weight"].place
            assert "head.weight" not in file.keys()  # noqa: SIM118
        assert file.metadata()["made"] == "here"


@given(state_dicts(2))
def test_a_folder_of_shards_holds_what_memory_holds(tmp_path_factory, states):
    checkpoints = members(*states)
    folder = to_file(checkpoints, tmp_path_factory.mktemp("merged") / "out", max_shard_size=100)
    opened, expected = (
        open_checkpoint(folder),
        merge_in_memory(plan_merge(checkpoints), checkpoints),
    )
    assert opened.specs().keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(as_bytes(opened.read(name)), as_bytes(tensor))


def test_a_failed_merge_leaves_nothing_behind(tmp_path):
    checkpoints = members(of(1.0), of(math.nan))
    for options in ({}, {"max_shard_size": 10}, {"resume": True}):
        with pytest.raises(CheckpointError, match="w   m1: 1 NaN"):
            to_file(checkpoints, tmp_path / "o", **options)
        assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(tmp_path):
    checkpoints, path = members(of(1.0)), tmp_path / "o.safetensors"
    to_file(checkpoints, path)
    before = path.read_bytes()
    with pytest.raises(OutputExists):
        to_file(members(of(2.0)), path)
    assert path.read_bytes() == before
    to_file(members(of(2.0)), path, overwrite=True)
    assert open_checkpoint(path).read("w").tolist() == [2.0]
