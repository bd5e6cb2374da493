from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alloykit
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, MissingInput
from alloykit.execution.members import open_members


def ids(models, **options):
    return [checkpoint.id for checkpoint in open_members(models, **options)]


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def saved(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        return alloykit.save_checkpoint(state(value), path)
    torch.save(state(value), path)
    return path


def test_files_go_by_their_names(tmp_path):
    paths = [saved(tmp_path / "a.safetensors"), str(saved(tmp_path / "epoch=1-loss=0.5.ckpt"))]
    assert ids(paths) == ["a", "epoch=1-loss=0.5"]


def test_files_of_one_name_go_by_their_folders(tmp_path):
    paths = [saved(tmp_path / f"run{i}/best/model.safetensors", i) for i in range(3)]
    assert ids(paths) == ["run0/best/model", "run1/best/model", "run2/best/model"]


def test_files_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    paths = [saved(tmp_path / "model.pt"), saved(tmp_path / "model.safetensors", 2.0)]
    assert ids(paths) == ["model.pt", "model.safetensors"]


def test_entries_of_one_file_keep_their_keys(tmp_path):
    torch.save({"model": state(1.0), "ema": state(3.0)}, tmp_path / "run.ckpt")
    paths = [f"{tmp_path}/run.ckpt#model", f"{tmp_path}/run.ckpt#ema"]
    assert ids(paths) == ["run#model", "run#ema"]
    assert alloykit.average(paths)["w"].tolist() == [2.0, 2.0]


def test_folders_with_dots_in_their_names_stay_apart(tmp_path):
    for version in ("3.1-8b", "3.2-8b"):
        saved(tmp_path / f"llama-{version}" / "model.safetensors")
    paths = [tmp_path / "llama-3.1-8b", tmp_path / "llama-3.2-8b"]
    assert ids(paths) == ["llama-3.1-8b", "llama-3.2-8b"]


def test_paths_may_come_from_a_generator(tmp_path):
    for index in range(20):
        saved(tmp_path / f"seed{index:02}.safetensors", float(index))
    merged = alloykit.average(tmp_path.glob("*.safetensors"))
    assert merged["w"].tolist() == pytest.approx([9.5, 9.5], rel=1e-6)


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "a.safetensors")
    saved(tmp_path / "b.safetensors")
    assert ids(["~/a.safetensors", Path("~/b.safetensors")]) == ["a", "b"]


def test_one_file_given_twice_is_a_mistake(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match=r"Given twice: .*/a\.safetensors\. Give each file once"):
        open_members([path, "a.safetensors"])


def test_one_model_in_memory_given_twice_is_one_content_twice():
    one, other = ids([state(), state()])
    assert one == other
    assert alloykit.average([state(), state()])["w"].tolist() == [1.0, 1.0]


def test_names_in_memory_depend_on_the_content_not_on_the_place():
    one, other = state(1.0), state(2.0)
    first, second = ids([one, other])
    assert re.fullmatch(r"model [0-9a-f]{8}", first)
    assert ids([other, one]) == [second, first]
    assert ids([{"w": one["w"].numpy()}]) == [first]


def test_a_wrapper_does_not_change_the_name():
    net = nn.Linear(2, 2)
    assert ids([nn.DataParallel(net)]) == ids([net]) == ids([net.state_dict()])
    twice = alloykit.average([nn.DataParallel(net), nn.DataParallel(net)])
    assert torch.equal(twice.module.weight, net.weight)


def test_given_names_are_kept(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    models = {"file": path, "memory": state(), 3: [np.ones(2, np.float32)]}
    assert ids(models) == ["file", "memory", "3"]


def test_open_checkpoints_keep_their_ids_unless_named(tmp_path):
    opened = [
        open_checkpoint(saved(tmp_path / f"{i}/model.safetensors", float(i))) for i in range(2)
    ]
    assert ids(opened) == ["model", "model"]
    with pytest.raises(CheckpointError, match="2 different models are named 'model'"):
        alloykit.average(opened)
    merged = alloykit.average({"first": opened[0], "second": opened[1]}, {"first": 3, "second": 1})
    assert merged["w"].tolist() == [0.25, 0.25]
    renamed = open_members({"first": opened[0]})[0]
    assert renamed.id == "first"
    assert renamed.metadata == opened[0].metadata
    assert renamed.specs() == opened[0].specs()
    assert renamed.read("w", start=1).tolist() == [0.0]
    assert renamed.notes == ()


def test_a_module_list_is_a_list_of_models():
    nets = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    torch.testing.assert_close(alloykit.average(nets).weight, (nets[0].weight + nets[1].weight) / 2)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        ("model.pt", "one was given: the path model.pt"),
        (Path("model.pt"), "one was given: the path model.pt"),
        (nn.Sequential(nn.Linear(1, 1), nn.ReLU()), "one was given: Sequential"),
        (torch.ones(3), "one was given: Tensor"),
        (np.ones(3), "one was given: ndarray"),
        (MemoryCheckpoint(state()), "one was given: MemoryCheckpoint"),
        (state(), "One state dict was given where several models belong"),
        ({"w": np.ones(2)}, "One state dict was given where several models belong"),
        ([], "at least two models; none were given"),
        ({}, "at least two models; none were given"),
        (iter(()), "at least two models; none were given"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_single_model_is_not_several(one, says):
    with pytest.raises(MissingInput, match=re.escape(says)):
        open_members(one)


def test_what_is_not_a_model_is_said_to_be_none():
    with pytest.raises(CheckpointError, match="A float is not a checkpoint"):
        open_members([1.0, 2.0])
    with pytest.raises(CheckpointError, match="There is no file"):
        open_members(["no-such-file.pt", "nor-this.pt"])
