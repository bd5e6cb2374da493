from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import alloykit
from alloykit.checkpoints.source_file import SourceFile
from alloykit.comparison.description import describe
from alloykit.errors import CheckpointError, InvalidRecipe

W = torch.ones(3, 4)
STATE = {"big.weight": torch.ones(8, 4), "w": W, "b": torch.ones(4).bfloat16()}


def test_a_safetensors_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"author": "me", "format": "pt"})
    found = describe(tmp_path / "a.safetensors")
    assert found.kind == "a safetensors file"
    assert found.checkpoint
    assert found.facts == {
        "on disk": f"{(tmp_path / 'a.safetensors').stat().st_size} bytes",
        "tensors": 3,
        "parameters": 32 + 12 + 4,
        "dtypes": ["bfloat16", "float32"],
        "largest": "big.weight [8, 4], 128 bytes",
        "metadata": {"author": "me"},
    }
    assert found.notes == ()


def test_tied_tensors_and_packed_ones_are_told(tmp_path: Path) -> None:
    torch.save({"a": W, "head": W}, tmp_path / "a.pth")
    found = describe(tmp_path / "a.pth")
    assert (found.kind, found.facts["tensors"]) == ("a file of torch.save", "2, of which 1 tied")
    assert found.facts["parameters"] == 12
    layer = {
        f"{i}.{n}": torch.ones(2, dtype=torch.int32) for i in "xy" for n in ("qweight", "scales")
    }
    save_file(layer, tmp_path / "q.safetensors")
    (note,) = describe(tmp_path / "q.safetensors").notes
    assert note.startswith("2 tensors cannot be merged, such as x.qweight: GPTQ or AWQ")


def test_a_training_checkpoint_and_one_of_its_entries(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": W}, "ema": {"w": W}, "epoch": 3}, tmp_path / "run.ckpt")
    found = describe(tmp_path / "run.ckpt")
    assert found.notes == ("read from the entry state_dict", "left out: ema, epoch")
    assert describe(f"{tmp_path}/run.ckpt#ema").notes[0] == "read from the entry ema"
    assert describe(f"{tmp_path}/run.ckpt#ema").facts["on disk"] == found.facts["on disk"]


def test_folders(tmp_path: Path) -> None:
    alloykit.merge([STATE, STATE], output=tmp_path / "shards", max_shard_size=100)
    found = describe(tmp_path / "shards")
    assert found.facts["files"] == len([*(tmp_path / "shards").iterdir()])
    assert found.facts["tensors"] == 3
    index = describe(tmp_path / "shards" / "model.safetensors.index.json")
    assert index.facts["tensors"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": STATE, "step": 3}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    found = describe(tmp_path / "dcp")
    assert found.kind == "a torch distributed checkpoint"
    assert (found.facts["files"], found.facts["tensors"]) == (2, 3)
    assert found.notes == ("read from the entry model", "left out: step")
    assert describe(tmp_path / "dcp" / ".metadata").facts == found.facts


def test_the_result_of_a_merge_says_how_it_was_made(tmp_path: Path) -> None:
    for name in "ab":
        save_file(STATE, tmp_path / f"{name}.safetensors")
    models = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    alloykit.merge(models, weights=[3, 1], output=tmp_path / "out.safetensors")
    found = describe(tmp_path / "out.safetensors")
    assert found.kind == "the result of a merge"
    assert found.facts["made by"].startswith("linear, alloykit ")
    assert found.facts["weights"] == {"a": 0.75, "b": 0.25}
    assert set(found.facts["inputs"]) == {"a", "b"}
    assert "metadata" not in found.facts


def test_statistics_say_what_they_are_of(tmp_path: Path) -> None:
    record = {"kind": "fisher", "examples": 200, "model": "sha256:1", "alloykit": "0.1.0"}
    save_file(STATE, tmp_path / "f.safetensors", {"alloykit.stats": json.dumps(record)})
    found = describe(tmp_path / "f.safetensors")
    assert found.kind == "statistics of a model"
    assert found.facts["kind"] == "fisher"
    assert found.facts["examples"] == 200
    assert found.facts["made with alloykit"] == "0.1.0"


def test_a_recipe_and_what_it_lacks(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    (tmp_path / "r.yaml").write_text(
        "merge_method: ties\nbase_model: base.safetensors\nmodels:\n  - model: a.safetensors\n"
        "  - model: run.ckpt#ema\nparameters: {density: 0.5}\n"
    )
    found = describe(tmp_path / "r.yaml")
    assert (found.kind, found.checkpoint) == ("a recipe", False)
    assert found.facts["method"] == "ties"
    assert found.facts["models"] == ["a.safetensors", "run.ckpt#ema"]
    assert found.notes[0] == "not there: run.ckpt#ema, base.safetensors"


def test_a_recipe_with_mistakes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("merge_method: tise\nmodels: []\n")
    with pytest.raises(InvalidRecipe, match="tise"):
        describe(tmp_path / "r.yaml")


def test_a_study_is_known(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "members:\n  - {checkpoint: a.pt}\n  - {checkpoint: b.pt}\n"
    )
    found = describe(tmp_path / "study.yaml")
    assert (found.kind, found.facts) == ("a study", {"members": 2})


def test_formats_that_cannot_be_merged_are_named(tmp_path: Path) -> None:
    head = (
        b"GGUF"
        + (3).to_bytes(4, "little")
        + (291).to_bytes(8, "little")
        + (25).to_bytes(8, "little")
    )
    (tmp_path / "m.gguf").write_bytes(head + bytes(100))
    found = describe(tmp_path / "m.gguf")
    assert (found.kind, found.checkpoint) == ("a GGUF file", False)
    assert found.facts == {"version": 3, "tensors": 291, "entries of metadata": 25}
    assert "Merge the safetensors files that it was made from" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS",
        ),
        ("model.safetensors", b"<!DOCTYPE html><html>", "a web page: the download did not work"),
        ("model.pt", b"\x1f\x8b\x08\0", "packed with gzip"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "a Keras file"),
        ("model.onnx", b"\x08\x07", "an ONNX graph"),
        ("model.npy", b"\x93NUMPY\x01\0", "a NumPy array without a name"),
        ("model.msgpack", b"\x81", "a Flax file"),
        ("__0_0.distcp", b"PK\x03\x04", "a part of a torch distributed checkpoint"),
    ],
)
def test_each_other_format_is_described_and_refused(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert describe(tmp_path / name).kind == kind
    with pytest.raises(CheckpointError, match=f"{name} is {kind}"):
        alloykit.open_checkpoint(tmp_path / name)


def test_what_is_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello, world")
    with pytest.raises(CheckpointError, match="no kind of checkpoint"):
        describe(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="There is no file"):
        describe(tmp_path / "none.safetensors")


def test_no_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(1 << 18)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", w=np.ones(1 << 17))
    sizes: list[int] = []
    read = SourceFile.read_into
    monkeypatch.setattr(
        SourceFile, "read_into", lambda f, view, at: sizes.append(len(view)) or read(f, view, at)
    )
    assert describe(tmp_path / "a.safetensors").facts["parameters"] == 1 << 18
    assert describe(tmp_path / "a.npz").kind == "a NumPy archive"
    assert sum(sizes) < 100_000


def test_a_study_of_a_federation(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("architecture: nets:small\nfederation: {rounds: 3}\n")
    found = describe(path)
    assert (found.kind, found.notes) == ("a study of a federation", ("Run it: alloykit federate",))
