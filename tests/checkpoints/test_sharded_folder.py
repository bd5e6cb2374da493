import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError

STATE = {"a.w": torch.ones(2), "b.w": torch.zeros(3), "c.w": torch.tensor(5)}


def shards(folder, suffix="safetensors", stem="model"):
    weight_map = {}
    for number, (name, tensor) in enumerate(STATE.items(), 1):
        file = f"{stem}-0000{number}-of-00003.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({name: tensor}, folder / file)
        weight_map[name] = file
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map}))
    return folder


def test_shards_of_both_kinds(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "p").mkdir()
    safe = open_checkpoint(shards(tmp_path / "s"))
    pickled = open_checkpoint(shards(tmp_path / "p", "bin", "pytorch_model"))
    assert (safe.id, pickled.id) == ("s", "p")
    for checkpoint in (safe, pickled):
        assert set(checkpoint.specs()) == set(STATE)
        assert all(torch.equal(checkpoint.read(name), STATE[name]) for name in STATE)
        assert len({spec.place for spec in checkpoint.specs().values()}) == 3
    assert content_digest(safe) == content_digest(pickled) == content_digest(open_checkpoint(STATE))


def test_an_index_can_be_named_itself(tmp_path):
    """For folders with several sets of weights, and those with names of their own."""
    (tmp_path / "s").mkdir()
    folder = shards(tmp_path / "s")
    index = folder / "model.safetensors.index.json"
    checkpoint = open_checkpoint(index)
    assert checkpoint.id == "s"
    assert set(checkpoint.specs()) == set(STATE)
    index.rename(folder / "unet.safetensors.index.json")
    assert set(open_checkpoint(folder / "unet.safetensors.index.json").specs()) == set(STATE)
    with pytest.raises(
        CheckpointError, match=r"(?s)holds no model.*unet\.safetensors\.index\.json"
    ):
        open_checkpoint(folder)


def test_a_single_file_in_a_folder(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).read("w").item() == 0
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).read("w").item() == 1, "safetensors goes first"


def test_links_as_the_hub_cache_makes_them(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save_file({"w": torch.ones(1)}, blobs / "abc")
    (snapshot / "model.safetensors").symlink_to(blobs / "abc")
    assert open_checkpoint(snapshot).read("w").item() == 1


def test_a_folder_with_other_names_offers_them(tmp_path):
    np.savez(tmp_path / "round3.npz", w=np.ones(1))
    with pytest.raises(CheckpointError, match=r"(?s)holds no model\.safetensors.*round3\.npz"):
        open_checkpoint(tmp_path)


def test_the_digest_of_a_folder_covers_names_and_content(tmp_path):
    before = file_digest(shards(tmp_path))
    assert file_digest(tmp_path) == before
    (tmp_path / "notes.txt").write_text("not a weight")
    assert file_digest(tmp_path) == before
    save_file({"a.w": torch.zeros(2)}, tmp_path / "model-00001-of-00003.safetensors")
    assert file_digest(tmp_path) != before
