"""``alloykit verify``: what a merged file says of itself, checked against its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command_line import run

Capture = pytest.CaptureFixture[str]
MODELS = ("A.safetensors", "B.safetensors")


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    """A file that ``merge`` wrote, beside its inputs, in the working folder."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("base.safetensors", *MODELS):
        save_file({key: torch.randn(8, 3, generator=generator) for key in ("x", "y")}, name)
    words = [
        "ties",
        *MODELS,
        "--base",
        "base.safetensors",
        "--density",
        "0.5",
        "-o",
        "out.safetensors",
    ]
    assert run(capsys, ["merge", *words]).code == 0
    return tmp_path / "out.safetensors"


def changed(path: Path) -> None:
    """Move one number of a file, and leave the rest, the header too."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    state["y"][0, 0] += 1
    save_file(state, path, metadata=metadata)


def test_a_file_as_it_was_written(merged: Path, capsys: Capture) -> None:
    done = run(capsys, ["verify", merged])
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith("It is what it says.")
    assert "input A" in done.out
    assert "NO" not in done.out


def test_an_input_that_changed(merged: Path, capsys: Capture) -> None:
    changed(Path("A.safetensors"))
    done = run(capsys, ["verify", merged])
    assert done.code == 4
    assert "cannot be checked: input A." in done.out
    assert "Traceback" not in done.err


def test_a_result_that_changed(merged: Path, capsys: Capture) -> None:
    changed(merged)
    done = run(capsys, ["verify", merged, "--json"])
    assert done.code == 4
    data = json.loads(done.out)
    assert data["ok"] is False
    assert [finding["what"] for finding in data["findings"] if not finding["ok"]] == ["values"]
    assert data["record"]["method"] == "ties"


def test_an_input_that_was_moved(merged: Path, capsys: Capture) -> None:
    Path("B.safetensors").rename("moved.safetensors")
    assert run(capsys, ["verify", merged]).code == 4
    done = run(capsys, ["verify", merged, "--input", "B=moved.safetensors"])
    assert done.code == 0, done.out
    said = run(capsys, ["verify", merged, "--input", "moved.safetensors"])
    assert said.code == 2
    assert "NAME=PATH" in said.err


def test_the_same_file_again(merged: Path, capsys: Capture) -> None:
    done = run(capsys, ["verify", merged, "--replay", "again.safetensors"])
    assert done.code == 0, done.err
    assert Path("again.safetensors").read_bytes() == merged.read_bytes()


def test_a_file_that_says_nothing(merged: Path, capsys: Capture) -> None:
    done = run(capsys, ["verify", "A.safetensors"])
    assert done.code == 4
    assert "does not say how it was made" in done.err
