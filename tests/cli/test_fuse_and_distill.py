"""``alloykit fuse`` and ``alloykit distill``: a study in, a model and its scores out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import alloykit
from command_line import run
from study_files import blobs, small_net, write_study

Capture = pytest.CaptureFixture[str]
TRAINING = {"epochs": 4, "batch_size": 32}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    inputs, labels = blobs(150, 12)
    np.savez(tmp_path / "train.npz", x=inputs, y=labels)
    data = {name: {"npz": f"{name}.npz"} for name in ("train", "validation", "test")}
    return write_study(tmp_path, data=data, training=TRAINING)


def accuracy(model: Any) -> float:
    inputs, labels = blobs(300, 11)
    with torch.no_grad():
        return float((model(torch.tensor(inputs)).argmax(1).numpy() == labels).mean())


def test_fuse_saves_a_program_that_scores_what_it_says(study: Path, capsys: Capture) -> None:
    out = study.parent / "fused.pt2"
    done = run(capsys, ["fuse", study, "-o", out, "--json"])
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["test"]["fused"]["accuracy"] == pytest.approx(accuracy(alloykit.load_exported(out)))
    assert set(said["test"]) == {"fused", "plain mean", said_single(said)}
    assert said["report"]["check"]["how"] == "cross-fitted"
    assert "verdict" in said["report"]


def said_single(said: dict[str, Any]) -> str:
    return next(name for name in said["test"] if name.endswith("(best single)"))


def test_fuse_prints_its_verdict_and_draws_whom_it_believes(study: Path, capsys: Capture) -> None:
    picture = study.parent / "believed.png"
    done = run(capsys, ["fuse", study, "--head", "attention", "-p", "epochs=3",
                        "--picture", picture])  # fmt: skip
    assert done.code == 0, done.err
    assert "the plain mean" in done.out
    assert "On test, 300 examples" in done.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_distill_saves_the_student_that_scores_what_it_says(study: Path, capsys: Capture) -> None:
    out = study.parent / "student.safetensors"
    done = run(capsys, ["distill", study, "-o", out, "--json", "--teacher", "concat"])
    assert done.code == 0, done.err
    said = json.loads(done.out)
    student = small_net()
    student.load_state_dict(load_file(out))
    assert said["test"]["student"]["accuracy"] == pytest.approx(accuracy(student))
    assert len(said["history"]["epochs"]) == 4
    assert said["facts"]["loss"].startswith("soft 0.5 x kl(T=2)")


def test_distill_goes_on_from_its_snapshot(study: Path, capsys: Capture) -> None:
    first, second = study.parent / "1.safetensors", study.parent / "2.safetensors"
    kept = study.parent / "snapshot"
    for out in (first, second):
        done = run(capsys, ["distill", study, "-o", out, "--snapshot", kept])
        assert done.code == 0, done.err
    assert first.read_bytes() == second.read_bytes()
    changed = run(capsys, ["distill", study, "--snapshot", kept, "--temperature", "4"])
    assert changed.code == 4
    assert "kl(T=4)" in changed.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["fuse", "STUDY", "--head", "concate"], 2, "Did you mean 'concat'?"),
        (["fuse", "STUDY", "--source", "feature"], 2, "source"),
        (["fuse", "STUDY", "-p", "pull"], 2, "NAME=VALUE"),
        (["fuse", "STUDY", "-p", "pul=3"], 2, "Did you mean 'pull'?"),
        (["fuse", "STUDY", "-p", "pull=-1"], 2, "pull"),
        (["fuse", "STUDY", "-o", "OUT.safetensors"], 2, "must end in .pt2"),
        (["fuse", "STUDY", "-o", "NOWHERE/out.pt2"], 4, "There is no folder"),
        (["distill", "STUDY", "--teacher", "averag"], 2, "Did you mean 'average'?"),
        (["distill", "STUDY", "--start", "tun1"], 2, "Did you mean 'tune1'?"),
        (["distill", "STUDY", "--temperature", "0"], 2, "'temperature'"),
        (["distill", "STUDY", "--alpha", "1.5"], 2, "'alpha' must be in [0, 1]"),
        (["distill", "STUDY", "--loss", "kll"], 2, "Did you mean 'kl'?"),
        (["distill", "STUDY", "--keep", "third"], 2, "keep"),
        (["distill", "STUDY", "-o", "OUT.pt"], 2, "must end in .safetensors"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_error_and_nothing_is_written(
    study: Path, capsys: Capture, arguments: list[str], code: int, text: str
) -> None:
    before = sorted(study.parent.rglob("*"))
    places = {"STUDY": str(study), "NOWHERE/": f"{study.parent}/nowhere/",
              "OUT": f"{study.parent}/out"}  # fmt: skip
    given = []
    for argument in arguments:
        for name, path in places.items():
            argument = argument.replace(name, path)
        given.append(argument)
    done = run(capsys, given)
    assert (done.code, text in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    after = [path for path in sorted(study.parent.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_distill_needs_data_to_learn_on(tmp_path: Path, capsys: Capture) -> None:
    done = run(capsys, ["distill", write_study(tmp_path)])
    assert done.code == 2
    assert "has no data.train" in done.err


def test_a_study_trains_and_adapts_its_members(study: Path, capsys: Capture) -> None:
    import yaml

    given = yaml.safe_load(study.read_text())
    given["classes"] = 3
    given["members"][0] |= {"mean": [0.1, 0.2], "std": [1.0, 2.0]}
    given["members"][1] |= {"classes": [0, 2, 1]}
    study.write_text(yaml.safe_dump(given))
    done = run(capsys, ["compare", study, "--json", "--only", "average", "--only", "distill"])
    assert done.code == 0, done.err
    rows = {row["candidate"]: row for row in json.loads(done.out)["rows"]}
    assert rows["student of average"]["status"] == "done"
    assert len(rows["student of average"]["history"]["epochs"]) == 4
    members = [row for row in rows.values() if row["family"] == "member"]
    plain = accuracy(_loaded(study.parent / "tune2.safetensors"))
    # Two of its classes change places: what it got right there, it now gets wrong.
    assert members[1]["test"]["accuracy"] != pytest.approx(plain)


def _loaded(path: Path) -> torch.nn.Module:
    net = small_net()
    net.load_state_dict(load_file(path))
    return net
