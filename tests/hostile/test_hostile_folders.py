"""Indexes and archives that point astray, and things in the file system that are no files."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from bad_files import Payload, flipped, repacked, saved
from safetensors.torch import save_file

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, UnsafeCheckpoint

A, B = "model-1.safetensors", "model-2.safetensors"
MAP = {"a": A, "b": B}


def folder(path, index):
    """Two shards that hold a and b, and an index."""
    home = path / "model"
    home.mkdir()
    save_file({"a": torch.ones(1)}, home / A)
    save_file({"b": torch.ones(1)}, home / B)
    save_file({"a": torch.ones(1)}, path / "outside.safetensors")
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    (home / "model.safetensors.index.json").write_bytes(text)
    return home


INDEXES = {
    "empty": (b"", "not valid JSON"),
    "not json": (b"{", "not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', "not UTF-8"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "a list": ([], "no weight_map"),
    "without weight_map": ({"metadata": {}}, "no weight_map"),
    "weight_map is a list": ({"weight_map": [A]}, "no weight_map"),
    "weight_map is empty": ({"weight_map": {}}, "no weight_map"),
    "doubled weight_map": (b'{"weight_map": {"a": "x"}, "weight_map": {}}', "there twice"),
    "doubled name": (b'{"weight_map": {"a": "x", "a": "y"}}', "the key a is there twice"),
    "file is a number": ({"weight_map": {"a": 1, "b": B}}, "1: not the name of a file"),
    "file is empty": ({"weight_map": MAP | {"a": ""}}, "does not end in"),
    "parent folder": ({"weight_map": MAP | {"a": "../outside.safetensors"}}, "leaves the folder"),
    "windows parent": ({"weight_map": MAP | {"a": "..\\outside.safetensors"}}, "leaves the folder"),
    "absolute": ({"weight_map": MAP | {"a": "/etc/x.safetensors"}}, "leaves the folder"),
    "drive": ({"weight_map": MAP | {"a": "c:x.safetensors"}}, "leaves the folder"),
    "sub-folder": ({"weight_map": MAP | {"a": "sub/x.safetensors"}}, "leaves the folder"),
    "nul": ({"weight_map": MAP | {"a": "x\0.safetensors"}}, "leaves the folder"),
    "dots": ({"weight_map": MAP | {"a": ".."}}, "leaves the folder"),
    "shard missing": ({"weight_map": MAP | {"a": "gone.safetensors"}}, "gone.safetensors: is mis"),
    "other extension": ({"weight_map": MAP | {"a": "model-1.bin"}}, "does not end in .safetensors"),
    "name missing": ({"weight_map": MAP | {"c": A}}, f"c: missing from {A}"),
    "name extra": (
        {"weight_map": {"a": A, "c": B}},
        f"(?s)c: missing.*b: in {B}, not in the index",
    ),
    "name in another shard": ({"weight_map": {"a": B, "b": A}}, f"a: in {A}, in {B} by the index"),
}


@pytest.mark.parametrize(("index", "reason"), INDEXES.values(), ids=INDEXES)
def test_bad_indexes(tmp_path, index, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(folder(tmp_path, index))
    assert "model.safetensors.index.json" in str(caught.value)


def test_a_good_index_loads(tmp_path):
    assert set(open_checkpoint(folder(tmp_path, {"weight_map": MAP})).specs()) == {"a", "b"}


def test_a_name_in_two_shards(tmp_path):
    home = folder(tmp_path, {"weight_map": MAP})
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, home / B)
    with pytest.raises(CheckpointError, match=rf"a: in 2 shards, {A}, {B}"):
        open_checkpoint(home)


def test_single_file_and_index_together(tmp_path):
    home = folder(tmp_path, {"weight_map": MAP})
    save_file({"a": torch.ones(1)}, home / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors and"):
        open_checkpoint(home)


def test_a_shard_that_is_a_folder(tmp_path):
    home = folder(tmp_path, {"weight_map": {"a": "sub.safetensors"}})
    (home / "sub.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"sub\.safetensors is a folder"):
        open_checkpoint(home)


def test_code_behind_an_index(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "pytorch_model-1.bin").write_bytes(
        saved({"model": {"a": torch.ones(1)}, "x": Payload(marker)})
    )
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model-1.bin.*posix.system"):
        open_checkpoint(tmp_path)
    assert set(open_checkpoint(tmp_path, trust_pickle=True).specs()) == {"a"}
    assert not marker.exists()


def test_an_index_of_absurd_size(tmp_path):
    home = folder(tmp_path, {"weight_map": MAP})
    os.truncate(home / "model.safetensors.index.json", 100_000_001)
    with pytest.raises(CheckpointError, match="the limit is 100000000"):
        open_checkpoint(home)


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy(header, data=b"", version=b"\x01\x00"):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def archive(content, name="w.npy", packing=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as new:
        new.writestr(name, content)
    return out.getvalue()


def described(descr="<f4", shape="(4,)", order="False", data=b"\0" * 16):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    return archive(npy(text, data))


GOOD = npz(w=np.arange(4.0))
EVIL = "__import__('os').system('touch marker')"

ARCHIVES = {
    "objects": (lambda: npz(w=np.array([None, 1])), r"w\.npy: its elements are Python objects"),
    "text": (lambda: npz(w=np.array(["a"])), "<U1"),
    "dates": (lambda: npz(w=np.array(["2020"], dtype="M8[s]")), "datetime64"),
    "structured": (lambda: npz(w=np.zeros(2, dtype=[("a", "f4")])), "raw bytes"),
    "bfloat16 as bytes": (lambda: npz(w=np.zeros(2, dtype="V2")), "bfloat16 must be saved as"),
    "long double": (lambda: npz(w=np.zeros(1, dtype=np.longdouble)), "not numbers that torch has"),
    "shape too big": (lambda: described(shape="(5,)"), "takes 20 bytes, and there are 16"),
    "negative shape": (lambda: described(shape="(-4,)"), "negative sizes"),
    "code in the header": (lambda: described(shape=EVIL), "w.npy: "),
    "header is no dictionary": (lambda: archive(npy("[]")), "w.npy: "),
    "header too long": (lambda: archive(npy("{" + " " * 20_000)), "w.npy: "),
    "unknown version": (lambda: archive(npy("{}", version=b"\x09\x00")), "w.npy: "),
    "no array": (lambda: archive(b"hello"), "w.npy: "),
    "empty array file": (lambda: archive(b""), "w.npy: "),
    "another file": (lambda: archive(b"x", name="code.py"), "code.py: it is not an array"),
    "no arrays": (lambda: repacked(GOOD, leave=("w.npy",)), "holds no arrays"),
    "not a zip": (lambda: b"hello", "not a usable zip archive"),
    "truncated": (lambda: GOOD[:-10], "not a usable zip archive"),
}


@pytest.mark.parametrize(("make", "reason"), ARCHIVES.values(), ids=ARCHIVES)
def test_bad_npz_archives(tmp_path, monkeypatch, make, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(make())
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint("a.npz")
    assert "a.npz" in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_arrays_are_noticed_when_read(tmp_path, packed):
    values = np.random.default_rng(0).random(5000)
    save = np.savez_compressed if packed else np.savez
    save(tmp_path / "a.npz", w=values)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(flipped(content, len(content) // 2))
    with pytest.raises(CheckpointError, match=r"a\.npz.*w\.npy"):
        open_checkpoint(tmp_path / "a.npz").read("w")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ""])
def test_pipes_devices_and_loops_do_not_hang(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"null{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / f"gone{suffix}").symlink_to(tmp_path / "nowhere")
    for name, reason in {
        "pipe": "pipe, socket or device",
        "null": "pipe, socket or device",
        "loop": "link|cannot be opened",
        "gone": "link to a file that does not exist",
    }.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            open_checkpoint(tmp_path / f"{name}{suffix}")
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["", "x\0y", "n" * 5000, "~nobody_of_that_name/x"])
def test_impossible_paths(name):
    with pytest.raises(CheckpointError):
        open_checkpoint(name if name else "./")


def test_a_folder_named_like_a_file(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_checkpoint(tmp_path / "a.safetensors")
