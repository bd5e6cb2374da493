import argparse
import gc
import os
import pathlib
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError
from alloykit.types import Checkpoint

W = torch.arange(6.0).reshape(2, 3)


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def test_a_checkpoint_is_returned_as_it_is():
    checkpoint = open_checkpoint({"w": W})
    assert open_checkpoint(checkpoint, name="other") is checkpoint


@pytest.mark.parametrize("kind", ["memory", "pth"])
def test_wrapper_prefixes_are_taken_off_and_reported(tmp_path, kind):
    state = {"_orig_mod.module.w": W, "_orig_mod.module.b": W[0]}
    source = state if kind == "memory" else save(tmp_path / "a.pth", state)
    checkpoint = open_checkpoint(source, name="a")
    assert isinstance(checkpoint, Checkpoint)
    assert list(checkpoint.specs()) == ["w", "b"]
    assert torch.equal(checkpoint.read("w", start=2, stop=4), torch.tensor([2.0, 3.0]))
    assert checkpoint.notes == ("every name began with '_orig_mod.module.', which was taken off",)


def test_prefixes_that_some_names_lack_stay():
    checkpoint = open_checkpoint({"module.w": W, "b": W})
    assert list(checkpoint.specs()) == ["module.w", "b"]
    assert checkpoint.notes == ()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_training_checkpoints(tmp_path, key):
    content = {
        "epoch": 3,
        "loss": torch.tensor(0.5),
        key: OrderedDict(w=W),
        "optimizer": {"state": {0: {"exp_avg": W}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "hyper_parameters": defaultdict(list, a=[1]),
        "args": argparse.Namespace(
            lr=1, path=pathlib.PurePosixPath("/x"), device=torch.device("cpu")
        ),
        "rng": (np.random.default_rng(0).random(3), np.float64(2), {1, 2}, Counter("aab")),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
    }
    checkpoint = open_checkpoint(save(tmp_path / "run.ckpt", content))
    assert checkpoint.id == "run"
    assert list(checkpoint.specs()) == ["w"]
    assert torch.equal(checkpoint.read("w"), W)
    assert checkpoint.notes[0] == f"read from the entry {key}"
    assert "left out: epoch, loss, optimizer" in checkpoint.notes[1]


def test_a_state_dict_with_plain_entries_beside(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "a.pth", {"w": W, "step": 3, "who": "me"}))
    assert list(checkpoint.specs()) == ["w"]
    assert checkpoint.notes == ("left out: step, who",)


def test_several_candidates_must_be_named(tmp_path):
    path = save(
        tmp_path / "a.ckpt", {"model": {"w": W}, "state_dict": {"w": W + 1}, "ema": {"w": W}}
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for key in ("model", "state_dict", "ema"):
        assert f"{path}#{key}" in str(caught.value)
    assert torch.equal(open_checkpoint(f"{path}#state_dict").read("w"), W + 1)
    with pytest.raises(CheckpointError, match=r"no entry 'emma'. Did you mean 'ema'"):
        open_checkpoint(f"{path}#emma")


def test_weights_under_an_unusual_key_are_offered(tmp_path):
    path = save(tmp_path / "a.ckpt", {"net": {"w": W}, "epoch": 1})
    with pytest.raises(CheckpointError, match=r"a.ckpt#net"):
        open_checkpoint(path)
    assert list(open_checkpoint(f"{path}#net").specs()) == ["w"]


def test_tensors_at_the_root_beside_a_candidate_are_ambiguous(tmp_path):
    path = save(tmp_path / "a.pth", {"w": W, "model": {"v": W}})
    with pytest.raises(CheckpointError, match=r"a\.pth#\."):
        open_checkpoint(path)
    assert list(open_checkpoint(f"{path}#.").specs()) == ["w"]
    assert list(open_checkpoint(f"{path}#model").specs()) == ["v"]


def test_a_file_whose_name_has_the_mark_is_found(tmp_path):
    path = save(tmp_path / "run#model.pth", {"w": W})
    assert open_checkpoint(path).id == "run#model"


def test_a_key_needs_a_pickled_file(tmp_path):
    np.savez(tmp_path / "a.npz", w=W.numpy())
    with pytest.raises(CheckpointError, match="#model"):
        open_checkpoint(f"{tmp_path / 'a.npz'}#model")


@pytest.mark.parametrize("form", [True, False], ids=["zip", "legacy"])
def test_ties_and_parameters_in_torch_files(tmp_path, form):
    shared = torch.nn.Parameter(W.clone())
    tagged = W.clone()
    tagged.note = "an attribute"
    content = {"a": shared, "b": shared, "row": shared.data[1], "tagged": tagged}
    specs = open_checkpoint(
        save(tmp_path / "a.pth", content, _use_new_zipfile_serialization=form)
    ).specs()
    assert specs["a"].place == specs["b"].place
    assert len({spec.place for spec in specs.values()}) == 3


def test_files_without_checksums_load(tmp_path):
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.pth", {"w": W})
    finally:
        torch.serialization.set_crc32_options(options)
    assert torch.equal(open_checkpoint(path).read("w"), W)


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    save(tmp_path / "resnet_seed1.pth", {"w": W})
    with pytest.raises(CheckpointError, match=r"Did you mean resnet_seed1.pth"):
        open_checkpoint(tmp_path / "resnet_sed1.pth")
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere" / "a.pth")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "a.pth", {"w": W})
    assert open_checkpoint("~/a.pth").id == "a"


@pytest.mark.parametrize("name", ["weights.pkl", "weights", "a.bin"])
def test_the_content_decides_where_the_name_says_nothing(tmp_path, name):
    assert list(open_checkpoint(save(tmp_path / name, {"w": W})).specs()) == ["w"]


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "a.txt").write_text("hello, world")
    with pytest.raises(CheckpointError, match="no kind of checkpoint"):
        open_checkpoint(tmp_path / "a.txt")
    with pytest.raises(CheckpointError, match="A float is not a checkpoint"):
        open_checkpoint(3.0)


@pytest.mark.parametrize("store", ["a.safetensors", "a.pth", "a.npz"])
@pytest.mark.parametrize("change", ["truncate", "touch"])
def test_files_that_change_after_opening_are_noticed(tmp_path, store, change):
    path = tmp_path / store
    if store.endswith("npz"):
        np.savez(path, w=W.numpy())
    elif store.endswith("pth"):
        torch.save({"w": W}, path)
    else:
        from safetensors.torch import save_file

        save_file({"w": W}, path)
    checkpoint = open_checkpoint(path)
    if change == "truncate":
        os.truncate(path, 10)
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while it was open"):
        checkpoint.read("w")


def test_a_file_that_is_replaced_by_rename_is_read_to_its_end(tmp_path):
    path = save(tmp_path / "a.pth", {"w": W})
    checkpoint = open_checkpoint(path)
    save(tmp_path / "new.pth", {"w": W + 1}).rename(path)
    assert torch.equal(checkpoint.read("w"), W)


def test_only_the_bytes_asked_for_are_read(tmp_path, monkeypatch):
    from alloykit.checkpoints.source_file import SourceFile
    from alloykit.checkpoints.writing import write_safetensors

    big = {"big": torch.zeros(1 << 20), "small": torch.ones(3)}
    source = open_checkpoint(big)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, source.specs(), big.items(), metadata={})
    spans = []
    read = SourceFile.read_tensor
    monkeypatch.setattr(
        SourceFile, "read_tensor", lambda f, a, b: spans.append(b - a) or read(f, a, b)
    )
    checkpoint = open_checkpoint(path)
    checkpoint.read("big", start=1000, stop=1010)
    checkpoint.read("small")
    assert spans[-2:] == [40, 12]
    assert sum(spans) < 1000


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_rests_while_a_file_is_opened_and_not_longer(
    tmp_path, monkeypatch, enabled
):
    from alloykit.checkpoints import opening

    path = save(tmp_path / "a.pth", {"w": W})
    meanwhile = []
    read = opening.open_torch
    monkeypatch.setattr(
        opening, "open_torch", lambda *a, **k: meanwhile.append(gc.isenabled()) or read(*a, **k)
    )
    was = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        open_checkpoint(path)
        assert (meanwhile, gc.isenabled()) == ([False], enabled)
        with pytest.raises(CheckpointError):
            open_checkpoint(f"{path}#nothing")
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if was else gc.disable()


@pytest.mark.parametrize("header", ["[[[", "{'descr': '<f4', ", "0 0", "\\"])
def test_npz_with_a_header_that_python_cannot_read_is_an_error(
    tmp_path: pathlib.Path, header: str
) -> None:
    path = tmp_path / "odd.npz"
    text = header.ljust(117).encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", array)
    with pytest.raises(CheckpointError, match=r"w\.npy.*header"):
        open_checkpoint(path)
