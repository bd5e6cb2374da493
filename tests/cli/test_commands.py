"""Each command end to end on small files, as people and as scripts call it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import alloykit
from command_line import run
from study_files import small_net, trained, write_study

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two checkpoints of one start."""
    start = trained(0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths, start=1):
        alloykit.save_checkpoint(trained(seed, start), path)
    return paths


def test_average_writes_the_mean_with_provenance(
    pair: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    done = run(capsys, ["average", *pair, "-o", tmp_path / "out.safetensors", "--weights", "3,1"])
    assert done.code == 0, done.err
    a, b = (load_file(path) for path in pair)
    out = load_file(tmp_path / "out.safetensors")
    for name in a:
        torch.testing.assert_close(out[name], 0.75 * a[name] + 0.25 * b[name])
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["method"]) == "linear"
    assert json.loads(metadata["weights"]) == {"a": 0.75, "b": 0.25}
    assert all(d.startswith("fingerprint:") for d in json.loads(metadata["inputs"]).values())
    assert "0.75" in done.out


def test_average_by_recency_follows_the_order_of_the_files(
    pair: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.safetensors"
    done = run(capsys, ["average", pair[1], pair[0], "-o", out, "--recency", "0.25", "--json"])
    assert json.loads(done.out)["weights"] == {"b": 0.5, "a": 0.5}
    assert json.loads(done.out)["parameters"] == {"decay": 0.25, "running": False}
    a, b = (load_file(path) for path in pair)
    merged = load_file(out)
    for name in a:
        torch.testing.assert_close(merged[name], 0.2 * b[name] + 0.8 * a[name])


def test_average_in_another_dtype(pair: list[Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "half.safetensors"
    assert run(capsys, ["average", *pair, "-o", out, "--dtype", "bfloat16"]).code == 0
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.bfloat16}
    wrong = run(capsys, ["average", *pair, "-o", out, "--dtype", "floaty"])
    assert wrong.code == 2
    assert "floaty" in wrong.err


def test_interpolate(pair: list[Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.safetensors"
    assert run(capsys, ["interpolate", *pair, "--alpha", "0.25", "-o", out]).code == 0
    a, b, merged = load_file(pair[0]), load_file(pair[1]), load_file(out)
    for name in a:
        torch.testing.assert_close(merged[name], 0.75 * a[name] + 0.25 * b[name])


def test_inspect_says_that_fine_tunes_can_be_averaged(pair: list[Path], capsys: Capture) -> None:
    said = run(capsys, ["inspect", *pair])
    assert said.code == 0
    assert "Their weights can be averaged" in said.out
    data = json.loads(run(capsys, ["inspect", *pair, "--json"]).out)
    assert data["combinable"] is True
    assert data["members"][0]["parameters"] == sum(p.numel() for p in small_net().parameters())
    a, b = (load_file(path) for path in pair)
    apart = torch.cat([(a[n] - b[n]).double().flatten() for n in a]).norm().item()
    assert data["pairs"][0]["distance"] == pytest.approx(apart)


def test_inspect_lists_every_difference(pair: list[Path], tmp_path: Path, capsys: Capture) -> None:
    alloykit.save_checkpoint(small_net(width=5), tmp_path / "narrow.safetensors")
    said = run(capsys, ["inspect", pair[0], tmp_path / "narrow.safetensors"])
    assert said.code == 0
    for name in ("0.weight", "0.bias", "2.weight"):
        assert name in said.out
    assert "cannot be averaged" in said.out


def test_compare_ends_with_table_recommendation_report_and_winner(
    tmp_path: Path, capsys: Capture
) -> None:
    study = write_study(tmp_path)
    done = run(capsys, ["compare", study])
    assert done.code == 0, done.err
    assert "average (probabilities)" in done.out
    assert "Ship " in done.out
    report = tmp_path / "study-output" / "report.html"
    assert str(report) in done.out
    assert "average (probabilities)" in report.read_text()
    rows = (tmp_path / "study-output" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == len({json.loads(row)["candidate"] for row in rows}) > 20


def test_compare_as_json_resumes_and_saves(tmp_path: Path, capsys: Capture) -> None:
    study = write_study(tmp_path)
    first = json.loads(run(capsys, ["compare", study, "--only", "linear", "--json"]).out)
    assert {row["candidate"] for row in first["rows"]} == {
        "tune1", "tune2", "tune3", "linear", "linear (by accuracy)",
    }  # fmt: skip
    out = tmp_path / "merged.safetensors"
    again = json.loads(
        run(capsys, ["compare", study, "--only", "linear", "--save", out, "--json"]).out
    )
    assert again["rows"] == first["rows"], "finished rows are kept, latencies included"
    members = [load_file(tmp_path / f"tune{n}.safetensors") for n in (1, 2, 3)]
    for name, tensor in load_file(out).items():
        torch.testing.assert_close(tensor, sum(m[name] for m in members) / 3)


def test_a_saved_ensemble_answers_like_its_row(tmp_path: Path, capsys: Capture) -> None:
    study, out = write_study(tmp_path), tmp_path / "ensemble.pt2"
    name = "average (probabilities)"
    done = json.loads(run(capsys, ["compare", study, "--only", name, "--save", out, "--json"]).out)
    row = next(row for row in done["rows"] if row["candidate"] == name)
    with np.load(tmp_path / "test.npz") as test:
        predicted = alloykit.load_exported(out)(torch.tensor(test["x"])).argmax(dim=1).numpy()
        assert (predicted == test["y"]).mean() == pytest.approx(row["test"]["accuracy"])


def test_diagnose_finds_one_basin_and_two(tmp_path: Path, capsys: Capture) -> None:
    study = write_study(tmp_path)
    said = run(capsys, ["diagnose", study])
    assert said.code == 0
    assert said.out.count("One basin") == 3
    barriers = json.loads(run(capsys, ["diagnose", study, "--json"]).out)
    assert [len(b["losses"]) for b in barriers] == [11, 11, 11]


def test_schema_names_every_key(capsys: Capture) -> None:
    schema = json.loads(run(capsys, ["compare", "--schema"]).out)
    assert {"members", "data", "task", "metric", "candidates"} <= set(schema["properties"])


def test_methods_lists_the_registries(capsys: Capture) -> None:
    listed = json.loads(run(capsys, ["methods", "--json"]).out)
    assert {entry["name"] for entry in listed} >= {
        "linear", "exponential", "interpolate", "average", "vote", "weighted", "greedy", "learned",
    }  # fmt: skip
    assert "linear" in run(capsys, ["methods"]).out


def test_unforeseen_errors_end_with_one_and_debug_shows_them(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[dict[str, str]]:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("alloykit.methods", broken)
    said = run(capsys, ["methods"])
    assert said.code == 1
    assert "ZeroDivisionError: planted" in said.err
    from alloykit.cli import main

    with pytest.raises(ZeroDivisionError, match="planted"):
        main(["methods", "--debug"])


def test_inspect_says_which_match_among_themselves(
    pair: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    wide = [tmp_path / "w1.safetensors", tmp_path / "w2.safetensors"]
    for path in wide:
        alloykit.save_checkpoint(small_net(width=9), path)
    data = json.loads(run(capsys, ["inspect", pair[0], wide[0], pair[1], wide[1], "--json"]).out)
    assert data["groups"] == [["a", "b"], ["w1", "w2"]]
    assert [(p["first"], p["second"]) for p in data["pairs"]] == [("a", "b"), ("w1", "w2")]
    assert "a and b; w1 and w2" in data["verdict"]
    assert data["combinable"] is False


def test_warnings_are_said_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        alloykit.save_checkpoint(torch.nn.BatchNorm1d(3), path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = run(capsys, ["average", *paths, "-o", tmp_path / "out.safetensors", "--json"])
    assert said.code == 0
    assert json.loads(said.out)["method"] == "linear"
    assert said.err.startswith("alloykit: BatchNorm statistics were averaged")
    assert "UserWarning" not in said.err


def test_a_look_at_one_candidate_keeps_the_report_of_all(tmp_path: Path, capsys: Capture) -> None:
    study = write_study(tmp_path)
    assert run(capsys, ["compare", study]).code == 0
    report = (tmp_path / "study-output" / "report.html").read_bytes()
    done = run(capsys, ["compare", study, "--only", "vote", "--save", tmp_path / "vote"])
    assert done.code == 0, done.err
    assert (tmp_path / "study-output" / "report.html").read_bytes() == report
    assert (tmp_path / "vote.pt2").exists(), "the ending that fits is added"


def test_save_is_refused_before_the_work(tmp_path: Path, capsys: Capture) -> None:
    study = write_study(tmp_path)
    for target in (tmp_path / "nowhere" / "x", tmp_path / "x.onnx", study):
        said = run(capsys, ["compare", study, "--save", target])
        assert said.code in (2, 4)
        assert not (tmp_path / "study-output").exists()
