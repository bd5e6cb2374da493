"""``alloykit federate``: a study of clients in, a model and its scores out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import alloykit
from command_line import run
from study_files import NETS, blobs, small_net

Capture = pytest.CaptureFixture[str]


def write(folder: Path, **changes: Any) -> Path:
    (folder / "nets.py").write_text(NETS)
    for name, count, seed in (("a", 90, 1), ("b", 60, 2), ("c", 30, 3), ("all", 180, 4),
                              ("validation", 200, 10), ("test", 300, 11)):  # fmt: skip
        inputs, labels = blobs(count, seed)
        np.savez(folder / f"{name}.npz", x=inputs, y=labels)
    splits = {name: {"npz": f"{name}.npz"} for name in ("validation", "test")}
    study: dict[str, Any] = {
        "architecture": "nets:small",
        "data": {**splits, "partitions": {name: {"npz": f"{name}.npz"} for name in "abc"}},
        "federation": {"rounds": 4, "training": {"epochs": 3, "learning_rate": 0.1}},
    }
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(study.get(key), dict)
        study[key] = {**study[key], **value} if merged else value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def accuracy(model: Any) -> float:
    inputs, labels = blobs(300, 11)
    with torch.no_grad():
        return float((model(torch.tensor(inputs)).argmax(1).numpy() == labels).mean())


def test_it_saves_the_model_that_scores_what_it_says(tmp_path: Path, capsys: Capture) -> None:
    out, drawn = tmp_path / "model.safetensors", tmp_path / "rounds.png"
    done = run(capsys, ["federate", write(tmp_path), "-o", out, "--picture", drawn, "--json"])
    assert done.code == 0, done.err
    said = json.loads(done.out)
    model = small_net()
    model.load_state_dict(load_file(out))
    assert said["test"]["federated"]["accuracy"] == pytest.approx(accuracy(model))
    assert accuracy(model) > 0.6
    assert [each["number"] for each in said["history"]["rounds"]] == [1, 2, 3, 4]
    assert said["settings"]["training"]["optimizer"] == "sgd"
    # 2 x 8 + 8 and 8 x 3 + 3 numbers of float32, three clients, both ways.
    assert said["history"]["rounds"][0]["bytes_down"] == 3 * 51 * 4
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_same_study_gives_the_same_file_and_a_program_says_the_same(
    tmp_path: Path, capsys: Capture
) -> None:
    study = write(tmp_path)
    outs = [tmp_path / name for name in ("1.safetensors", "2.safetensors", "3.pt2")]
    for out in outs:
        assert run(capsys, ["federate", study, "-o", out]).code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    model = small_net()
    model.load_state_dict(load_file(outs[0]))
    assert accuracy(alloykit.load_exported(outs[2])) == accuracy(model)


def test_the_table_of_rounds(tmp_path: Path, capsys: Capture) -> None:
    study = write(tmp_path, federation={"attacks": {"b": "nan"}})
    done = run(capsys, ["federate", study, "--rounds", "2"])
    assert done.code == 0, done.err
    assert "3 clients, scores on validation" in done.out
    assert "On test, 300 examples" in done.out
    assert "Left out 2 times: 0.weight holds 16 NaN" in done.out
    rows = [line.split() for line in done.out.splitlines() if line.lstrip()[:2] in ("1 ", "2 ")]
    assert [(row[0], row[3], row[4]) for row in rows] == [("1", "2", "1"), ("2", "2", "1")]


def test_it_goes_on_from_its_snapshot_with_more_rounds(tmp_path: Path, capsys: Capture) -> None:
    study, kept = write(tmp_path), tmp_path / "snapshot"
    straight, resumed = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    assert run(capsys, ["federate", study, "-o", straight]).code == 0
    assert run(capsys, ["federate", study, "--snapshot", kept, "--rounds", "2"]).code == 0
    assert run(capsys, ["federate", study, "--snapshot", kept, "-o", resumed]).code == 0
    assert straight.read_bytes() == resumed.read_bytes()
    other = run(capsys, ["federate", study, "--snapshot", kept, "--method", "median"])
    assert other.code == 4
    assert "federation.method   snapshot: fedavg   now: median" in other.err


def test_one_split_is_dealt_out(tmp_path: Path, capsys: Capture) -> None:
    deal = {"clients": 12, "how": "dirichlet", "concentration": 0.5, "least": 3}
    data = {"partitions": None, "train": {"npz": "all.npz"}, "deal": deal}
    done = run(capsys, ["federate", write(tmp_path, data=data), "--rounds", "1", "--json"])
    assert done.code == 0, done.err
    counted = json.loads(done.out)["history"]["rounds"][0]["record"]["counted"]
    assert [each["client"] for each in counted] == [f"client {i:02}" for i in range(1, 13)]
    assert sum(each["num_examples"] for each in counted) == 180


def test_feddf_and_a_base(tmp_path: Path, capsys: Capture) -> None:
    alloykit.save_checkpoint(small_net(), tmp_path / "start.safetensors")
    study = write(tmp_path, base="start.safetensors", data={"unlabelled": {"npz": "all.npz"}},
                  federation={"distillation": {"epochs": 2}, "method": "fedavgm"})  # fmt: skip
    done = run(capsys, ["federate", study, "--json"])
    assert done.code == 0, done.err
    assert json.loads(done.out)["settings"]["distillation"]["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "options", "code", "text"),
    [
        ({"federation": {"round": 3}}, [], 2, "federation.round: there is no such key. Did you mean 'rounds'?"),
        ({"federation": {"fraction": 2, "drop_out": -1}}, [], 2, "federation: 'drop_out' must be a number in [0, 1)"),
        ({"federation": {"training": {"epoch": 3}}}, [], 2, "federation.training.epoch: there is no such key. Did you mean 'epochs'?"),
        ({"federation": {"method": "fedavgg"}}, [], 2, "Did you mean 'fedavg"),
        ({"federation": {"checks": {"max_nrm": 3}}}, [], 2, "'max_nrm'. Did you mean 'max_norm'?"),
        ({"architecture": None}, [], 2, "The study has no architecture"),
        ({"data": {"partitions": None}}, [], 2, "The study has no data for clients"),
        ({"data": {"deal": {"clients": 3}}}, [], 2, "'partitions' and 'deal' exclude each other"),
        ({"data": {"partitions": {"a": {"npz": "test.npz"}}}}, [], 3, "Partition a: train and test share 300"),
        ({}, ["--rounds", "0"], 2, "--rounds"),
        ({}, ["-o", "OUT.pt"], 2, "must end in .safetensors or .pt2"),
        ({}, ["--picture", "OUT.jpg"], 2, "must end in .png or .svg or .pdf"),
        ({}, ["--method", "krum"], 2, "krum"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_error_and_nothing_is_written(
    tmp_path: Path,
    capsys: Capture,
    changes: dict[str, Any],
    options: list[str],
    code: int,
    text: str,
) -> None:
    study = write(tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))
    given = [option.replace("OUT", str(tmp_path / "out")) for option in options]
    done = run(capsys, ["federate", study, *given])
    assert (done.code, text in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_compare_reads_the_same_study(tmp_path: Path, capsys: Capture) -> None:
    done = run(capsys, ["compare", write(tmp_path)])
    assert done.code == 2
    assert "members: is missing" in done.err


def test_compare_runs_the_rounds_of_a_study_beside_its_members(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path)
    for name in ("one", "two"):
        alloykit.save_checkpoint(small_net(), tmp_path / f"{name}.safetensors")
    given = yaml.safe_load(path.read_text())
    given |= {
        "members": [{"checkpoint": f"{name}.safetensors"} for name in ("one", "two")],
        "resamples": 100,
    }
    path.write_text(yaml.safe_dump(given))
    done = run(capsys, ["compare", path, "--json", "--only", "fedavg"])
    assert done.code == 0, done.err
    rows = {row["candidate"]: row for row in json.loads(done.out)["rows"]}
    assert rows["federated (fedavg, 4 rounds)"]["status"] == "done"
    assert rows["federated (fedavg, 4 rounds)"]["test"]["accuracy"] > 0.6
