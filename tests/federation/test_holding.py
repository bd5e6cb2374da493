"""Updates kept until a round ends."""

from __future__ import annotations

import gc
import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError
from alloykit.federation.holding import copied, in_memory, in_one_line, size, unreadable
from client_samples import model, same_bits


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def sample():
    embed = torch.randn(3, 5).t()
    odd = {"flags": torch.tensor([True]), "none": torch.zeros(0, 3), "one": torch.tensor(2, dtype=torch.int8)}  # fmt: skip
    return model() | odd | {"phase": torch.randn(3, dtype=torch.complex64), "a": embed, "b": embed}


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_copy_has_the_same_bits_and_its_own_memory(folder, on_disk):
    state = sample()
    names = [name for name in state if name != "scale"]
    copy = copied(MemoryCheckpoint(state, "m"), names, on_disk=on_disk)
    assert len(list(folder.iterdir())) == on_disk
    wanted = {name: state[name].clone() for name in names}
    for tensor in state.values():
        tensor.zero_()
    assert same_bits({name: copy.read(name) for name in copy.specs()}, wanted)
    assert copy.specs()["a"].place == copy.specs()["b"].place
    assert copy.id == "m"
    assert in_memory(copy)


def test_the_file_goes_with_the_copy(folder):
    copy = copied(MemoryCheckpoint(sample(), "m"), ["layer.weight"], on_disk=True)
    assert list(folder.iterdir())
    del copy
    gc.collect()
    assert not list(folder.iterdir())


def test_tied_tensors_take_their_bytes_once():
    tied = torch.zeros(10)
    checkpoint = MemoryCheckpoint({"a": tied, "b": tied, "c": torch.zeros(3).half()}, "m")
    assert size(checkpoint, ["a", "b", "c"]) == 46
    assert size(checkpoint, ["b"]) == 40


def test_what_lies_in_memory(tmp_path):
    save_file({"module.w": torch.ones(2)}, tmp_path / "m.safetensors")
    assert not in_memory(open_checkpoint(tmp_path / "m.safetensors"))
    assert in_memory(open_checkpoint({"module.w": torch.ones(2)}))
    assert in_memory(open_checkpoint(torch.nn.Linear(2, 2)))


def test_damage_that_shows_only_in_reading(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, w=np.random.default_rng(0).normal(size=4000))
    assert unreadable(open_checkpoint(path)) == ""
    raw = bytearray(path.read_bytes())
    raw[3000] ^= 255
    path.write_bytes(raw)
    assert "w.npy cannot be unpacked" in unreadable(open_checkpoint(path))
    assert unreadable(open_checkpoint({"w": torch.ones(1)})) == ""


def test_errors_in_one_line():
    assert in_one_line(CheckpointError("a list:\n  one\n  two")) == "a list: one"
    assert in_one_line(CheckpointError("a text.\nHow to go on.")) == "a text."
