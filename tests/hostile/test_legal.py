"""Unusual but legal files, which other readers trip over: they open, and hold what was saved."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from bad_files import entry, repacked, safetensors, saved
from safetensors.torch import save_file

import alloykit
from alloykit.checkpoints.opening import open_checkpoint

MANY = 20_000
W = torch.arange(12.0).reshape(3, 4)


def test_scalars_and_tensors_without_elements(tmp_path: Path) -> None:
    state = {"s": torch.tensor(2.0), "e": torch.zeros(0, 3), "w": W}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        checkpoint = open_checkpoint(tmp_path / file)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
    merged = alloykit.merge([tmp_path / "a.safetensors", tmp_path / "a.pth"])
    assert {name: tuple(tensor.shape) for name, tensor in merged.items()} == {
        "s": (), "e": (0, 3), "w": (3, 4)
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../a", "é", "中", "\U0001f600", "a.b.c", "0", "x" * 4000, "\n"]
)
def test_odd_names(name: str, tmp_path: Path) -> None:
    save_file({name: W}, tmp_path / "a.safetensors")
    torch.save({name: W}, tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        assert torch.equal(open_checkpoint(tmp_path / file).read(name), W)
    output = tmp_path / "out.safetensors"
    alloykit.merge([tmp_path / "a.safetensors", tmp_path / "a.pth"], output=output)
    assert torch.equal(open_checkpoint(output).read(name), W)


def test_a_header_in_another_order_and_at_odd_addresses(tmp_path: Path) -> None:
    header = {"late": entry(5, 9), "flag": entry(0, 1, (), "BOOL"), "early": entry(1, 5)}
    text = json.dumps(header) + " " * (7 - len(json.dumps(header)) % 8)
    assert (8 + len(text)) % 4
    data = b"\1" + torch.tensor([1.5]).numpy().tobytes() + torch.tensor([2.5]).numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(safetensors(text.encode(), data))
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.read("early").item(), checkpoint.read("late").item()) == (1.5, 2.5)
    assert checkpoint.read("flag").item() is True
    output = tmp_path / "out.safetensors"
    alloykit.merge([tmp_path / "a.safetensors", {"late": torch.tensor([0.5]),
                    "early": torch.tensor([0.5]), "flag": torch.tensor(True)}], output=output)  # fmt: skip
    assert open_checkpoint(output).read("late").item() == 1.5


def test_views_that_share_or_turn_a_storage(tmp_path: Path) -> None:
    big = torch.arange(20.0)
    state = {
        "first": big[:4],
        "again": big[:4],
        "overlapping": big[2:8],
        "turned": W.t(),
        "every other": big[::2],
        "last": W[:, -1],
    }
    for form in (True, False):
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=form)
        checkpoint = open_checkpoint(tmp_path / "a.pth")
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            part = checkpoint.read(name, start=1, stop=3)
            assert torch.equal(part, tensor.reshape(-1)[1:3])
        specs = checkpoint.specs()
        assert specs["first"].place == specs["again"].place != specs["overlapping"].place


def test_tensors_that_lived_on_a_gpu(tmp_path: Path) -> None:
    """A location of CUDA in the pickle is of no matter: the bytes are read from the file."""
    content = saved({"w": W})
    pickled = repacked(content)
    assert b"cpu" in pickled
    (tmp_path / "a.pth").write_bytes(_moved(content))
    assert torch.equal(open_checkpoint(tmp_path / "a.pth").read("w"), W)


def _moved(content: bytes) -> bytes:
    """The same file, of a tensor saved from the first GPU."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
    short, long = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    assert short in pickled
    return repacked(content, change={"data.pkl": pickled.replace(short, long)})


def test_a_nested_state_dict_is_read_from_its_entry(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.w": W, "module.b": W[0]}, "epoch": 3}, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    assert list(checkpoint.specs()) == ["w", "b"]
    assert torch.equal(checkpoint.read("w"), W)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_many_tensors(suffix: str, tmp_path: Path) -> None:
    """Opening takes time by the number of tensors; this allows for machines ten times as slow."""
    state = {
        f"model.layers.{i // 10}.{i % 10}.weight": torch.tensor([float(i)]) for i in range(MANY)
    }
    path = tmp_path / f"a.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    began = time.process_time()
    checkpoint = open_checkpoint(path)
    specs = checkpoint.specs()
    spent = time.process_time() - began
    assert len(specs) == MANY
    assert spent < 5
    assert checkpoint.read("model.layers.1321.5.weight").item() == 13215.0
