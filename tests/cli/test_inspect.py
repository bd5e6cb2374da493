from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from command_line import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"w": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    return [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


def test_one_checkpoint_is_described(pair: list[Path], capsys: Capture) -> None:
    said = run(capsys, ["inspect", pair[0]])
    assert said.code == 0
    for text in ("a.safetensors: a safetensors file", "largest     w [3], 12 bytes"):
        assert text in said.out
    assert "Models" not in said.out


def test_headers_only_reads_no_values(pair: list[Path], capsys: Capture) -> None:
    save_file({"w": torch.full((3,), float("nan"))}, pair[1])
    said = run(capsys, ["inspect", *pair, "--headers-only"])
    assert (said.code, said.err) == (0, "")
    assert "The values were not read." in said.out
    assert "NaN" not in said.out
    assert "w   b: 3 NaN" in run(capsys, ["inspect", *pair]).out


def test_headers_only_still_lists_what_differs(pair: list[Path], capsys: Capture) -> None:
    save_file({"w": torch.ones(4)}, pair[1])
    said = run(capsys, ["inspect", *pair, "--headers-only"])
    assert "w   a: [3]   b: [4]" in said.out
    assert "cannot be averaged" in said.out


def test_a_gguf_file_and_a_recipe_among_checkpoints(
    pair: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    recipe = {"merge_method": "linear", "models": [{"model": path.name} for path in pair]}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    said = run(capsys, ["inspect", *pair, tmp_path / "m.gguf", tmp_path / "r.yaml"])
    assert said.code == 0
    for text in ("m.gguf: a GGUF file", "r.yaml: a recipe", "How they relate"):
        assert text in said.out
    data = json.loads(run(capsys, ["inspect", tmp_path / "m.gguf", "--json"]).out)
    assert data["descriptions"][0]["kind"] == "a GGUF file"
    assert "combinable" not in data
    data = json.loads(run(capsys, ["inspect", *pair, "--json"]).out)
    assert data["combinable"] is True
    assert [each["kind"] for each in data["descriptions"]] == ["a safetensors file"] * 2


def test_packed_tensors_stand_in_the_way(tmp_path: Path, capsys: Capture) -> None:
    layer = {"l.qweight": torch.ones(2, dtype=torch.int32), "l.scales": torch.ones(2)}
    for name in "ab":
        save_file(layer, tmp_path / f"{name}.safetensors")
    said = run(capsys, ["inspect", tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert "l.qweight   a: GPTQ or AWQ" in said.out
    assert "cannot be averaged" in said.out


def test_control_characters_never_reach_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    metadata = {"note\x1b[2J": "\x1b[31mred", "method": '"\\u001b[2J"', "alloykit": '"1"'}
    save_file({"w\x1b[2J": torch.ones(3)}, tmp_path / "a.safetensors", metadata)
    said = run(capsys, ["inspect", tmp_path / "a.safetensors"])
    assert said.code == 0
    assert "\x1b" not in said.out + said.err
