"""``alloykit merge`` end to end: by options, by recipe, as a dry run, and typed wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import alloykit
from alloykit.cli import app
from alloykit.cli.method_options import DECLARED, sorted_arguments
from command_line import Finished, run

Capture = pytest.CaptureFixture[str]
NAMES = [
    "embed.weight",
    *(f"layers.{i}.{part}.weight" for i in range(3) for part in ("mlp", "attn")),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base and three models."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "A", "B", "C"):
        state = {key: torch.randn(4, 6, generator=generator) for key in NAMES}
        save_file(state | {"steps": torch.tensor(3)}, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(capsys: Capture, *words: object) -> dict[str, torch.Tensor]:
    """The tensors of a merge into a new file."""
    done = run(capsys, ["merge", *words, "-o", "out.safetensors", "--overwrite"])
    assert done.code == 0, done.err
    return load_file("out.safetensors")


def expected(models: str = "ABC", **arguments: Any) -> dict[str, torch.Tensor]:
    paths = [f"{name}.safetensors" for name in models]
    found: dict[str, torch.Tensor] = alloykit.merge(paths, **arguments)
    return found


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


MODELS = ("A.safetensors", "B.safetensors", "C.safetensors")
BASE = ("--base", "base.safetensors")


@pytest.mark.parametrize(
    "weights", [["--weights", "1", "1", "0.5"], ["--weights", "1,1,0.5"], ["--weights=1,1,.5"],
                ["--weights", "1,1", "5e-1"]],
)  # fmt: skip
def test_ties_by_options(weights: list[str], folder: Path, capsys: Capture) -> None:
    found = merged(capsys, "ties", *MODELS, *BASE, "--density", "0.3", *weights)
    wanted = expected(
        method="ties", base="base.safetensors", weights=[1, 1, 0.5], parameters={"density": 0.3}
    )
    same(found, wanted)
    record = alloykit.open_checkpoint("out.safetensors").metadata
    assert json.loads(record["method"]) == "ties"
    assert json.loads(record["parameters"])["density"] == 0.3


def test_numbers_end_where_the_models_begin(folder: Path, capsys: Capture) -> None:
    wanted = expected(method="ties", base="base.safetensors", weights=[1, -1, 0.5],
                      parameters={"density": [0.3, 0.5, 1.0]})  # fmt: skip
    words = ["ties", "--weights", "1", "-1", "0.5", *MODELS, "--density", "0.3", "0.5", "1", *BASE]
    same(merged(capsys, *words), wanted)
    words = [
        "ties",
        "--density",
        "0.3,0.5,1",
        "A.safetensors",
        "--weights=1,-1,0.5",
        *MODELS[1:],
        *BASE,
    ]
    same(merged(capsys, *words), wanted)


def test_every_kind_of_option(folder: Path, capsys: Capture) -> None:
    wanted = expected(method="ties", base="base.safetensors", compat="mergekit",
                      parameters={"density": 0.5, "scale": -0.7, "normalize": False, "rescale": True,
                                  "scope": "tensor"})  # fmt: skip
    same(merged(capsys, "ties", *BASE, "--density", "0.5", "--lambda", "-0.7", "--no-normalize",
                "--rescale", "--scope", "tensor", "--compat", "mergekit", *MODELS), wanted)  # fmt: skip
    same(merged(capsys, "ties", "--rescale", "yes", *MODELS, *BASE, "--density=0.5", "--scale=-0.7",
                "--normalize", "false", "--compat=mergekit", "--scope=tensor"), wanted)  # fmt: skip


def test_dashes_and_underscores_are_alike(folder: Path, capsys: Capture) -> None:
    for option in ("--filter-wise", "--filter_wise"):
        found = merged(capsys, "model_stock", *MODELS, *BASE, option)
        same(
            found,
            expected(
                method="model_stock", base="base.safetensors", parameters={"filter_wise": True}
            ),
        )


def test_statistics(folder: Path, capsys: Capture) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in "AB":
        save_file(
            {key: torch.rand(4, 6, generator=generator) for key in NAMES},
            f"{name}.fisher.safetensors",
        )
    files = ["A.fisher.safetensors", "B.fisher.safetensors"]
    found = merged(capsys, "fisher", *MODELS[:2], "--stats", "fisher", *files)
    same(found, expected("AB", method="fisher", stats={"fisher": files}))
    a, b = (load_file(name) for name in MODELS[:2])
    fa, fb = (load_file(name) for name in files)
    name = NAMES[0]
    by_hand = (fa[name] * a[name] + fb[name] * b[name]) / (fa[name] + fb[name])
    torch.testing.assert_close(found[name], by_hand, rtol=1e-3, atol=1e-4)


RECIPE = """
models:
  - model: base.safetensors
  - model: A.safetensors
    parameters:
      density: [1, 0.2]
      weight: 1
  - model: B.safetensors
    parameters:
      density: 0.5
      weight: [{filter: mlp, value: 0.5}, {value: 0}]
merge_method: ties
base_model: base.safetensors
parameters: {normalize: false, lambda: 0.9, int8_mask: true}
dtype: bfloat16
"""


def test_a_recipe(folder: Path, capsys: Capture) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    done = run(capsys, ["merge", "recipe.yaml", "-o", "out.safetensors"])
    assert done.code == 0, done.err
    assert "int8_mask has no effect" in done.err
    assert "by tensor" in done.out
    found = load_file("out.safetensors")
    for name, (density, weight) in {
        "embed.weight": (1.0, 0.0), "layers.0.mlp.weight": (1.0, 0.5), "layers.1.attn.weight": (0.6, 0.0),
        "layers.2.mlp.weight": (0.2, 0.5),
    }.items():  # fmt: skip
        wanted = expected("AB", method="ties", base="base.safetensors", weights=[1, weight],
                          parameters={"density": [density, 0.5], "normalize": False, "scale": 0.9})  # fmt: skip
        torch.testing.assert_close(found[name], wanted[name].bfloat16(), rtol=0, atol=0)


def test_a_recipe_in_another_folder(folder: Path, capsys: Capture) -> None:
    Path("recipes").mkdir()
    Path("recipes/mean.yml").write_text(
        "{merge_method: linear, models: [{model: ../A.safetensors}, {model: ../B.safetensors}], seed: 1}"
    )
    same(merged(capsys, "recipes/mean.yml"), expected("AB"))
    same(
        merged(capsys, "recipes/mean.yml", "--dtype", "float16"),
        expected("AB", dtype=torch.float16),
    )
    Path("recipes/mean.yml").rename("recipes/mean")
    same(merged(capsys, "recipes/mean"), expected("AB"))


def test_a_dry_run_writes_nothing_and_says_everything(folder: Path, capsys: Capture) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    before = sorted(folder.iterdir())
    done = run(capsys, ["merge", "recipe.yaml", "--dry-run"])
    assert done.code == 0, done.err
    for words in ("Plan: ties", "by ties", "not floating point", "steps", "density of A", "0.2 to 1",
                  "weight of B", "0 to 0.5", "scale 0.9", "Writes: 344 bytes as bfloat16, int64", "Memory:"):  # fmt: skip
        assert words in done.out, words
    data = json.loads(
        run(capsys, ["merge", "recipe.yaml", "--dry-run", "--json", "-o", "out.safetensors"]).out
    )
    assert data["bytes_written"] == 7 * 24 * 2 + 8
    assert data["bytes_read"] == 3 * (7 * 24 * 4 + 8)
    actions = {step["name"]: step["action"] for step in data["plan"]["steps"]}
    assert actions["steps"] == "copy"
    assert {actions[name] for name in NAMES} == {"merge"}
    assert sorted(folder.iterdir()) == before


def test_a_dry_run_says_what_is_not_read_and_what_is_tied(folder: Path, capsys: Capture) -> None:
    shared = torch.ones(3)
    state = {"head": shared, "embed": shared, "bn.num_batches_tracked": torch.tensor(2)}
    for name in "AB":
        torch.save(state, f"{name}.pt")
    done = run(capsys, ["merge", "linear", "A.pt", "B.pt", "--weights", "1", "0", "--dry-run"])
    assert done.code == 0, done.err
    for words in ("not read: its weight is zero", "written once", "the largest is taken"):
        assert words in done.out, words
    data = json.loads(run(capsys, ["merge", "linear", "A.pt", "B.pt", "--dry-run", "--json"]).out)
    assert data["bytes_written"] == 3 * 4 + 8, "what is tied is written once"


def test_the_result_as_json(folder: Path, capsys: Capture) -> None:
    done = run(capsys, ["merge", "linear", *MODELS, "-o", "out.safetensors", "--json"])
    data = json.loads(done.out)
    assert data["output"] == "out.safetensors"
    assert data["method"] == "linear"
    assert set(data["inputs"]) == {"A", "B", "C"}


def test_shards_and_manifest(folder: Path, capsys: Capture) -> None:
    done = run(capsys, ["merge", "linear", *MODELS, "-o", "out", "--max-shard-size", "300", "--manifest",
                        "--memory", "1GB", "--threads", "1", "--digests", "sha256", "--resume"])  # fmt: skip
    assert done.code == 0, done.err
    assert len(list((folder / "out").glob("*.safetensors"))) > 2
    assert (folder / "out.manifest.json").exists()
    assert "sha256:" in done.out


def test_schema(capsys: Capture) -> None:
    schema = json.loads(run(capsys, ["merge", "--schema"]).out)
    assert "ties" in schema["properties"]["merge_method"]["enum"]


def test_help_of_a_method_lists_its_own_options(capsys: Capture) -> None:
    said = run(capsys, ["merge", "ties", "--help"]).out
    for words in (
        "--output",
        "--density N [N ...]",
        "--lambda N",
        "--scope tensor|model",
        "--no-...",
    ):
        assert words in said, words
    assert "--density" not in run(capsys, ["merge", "--help"]).out.replace("--density:", "")
    assert "has no options of its own" in run(capsys, ["merge", "median", "--help"]).out


def test_the_options_known_for_suggestions_are_those_of_the_command() -> None:
    command = typer.main.get_command(app).commands["merge"]  # type: ignore[attr-defined]
    declared = {max(each.opts, key=len) for each in command.params if each.opts[0].startswith("-")}
    assert declared == set(DECLARED)


OUT = ("-o", "out.safetensors")
WRONG = [
    (["ties", *MODELS, *BASE, "--densty", "0.3", "--ovrwrite", *OUT], 2,
     ("no option --densty. Did you mean '--density'?", "--ovrwrite. Did you mean '--overwrite'?", "ties takes: --density")),
    (["ties", *MODELS, *BASE, "--density", "0.3", "0.5", *OUT], 2, ("--density has 2 numbers for 3 models",)),
    (["ties", *MODELS, *BASE, "--lambda", "1", "2", *OUT], 2, ("--lambda takes one value; 2 were given",)),
    (["ties", *MODELS, *BASE, "--lambda", "one", *OUT], 2, ("--lambda must be a number. Got 'one'",)),
    (["ties", *MODELS, *BASE, "--lambda", *OUT], 2, ("--lambda needs a value",)),
    (["ties", *MODELS, *BASE, "--scope", "layer", *OUT], 2, ("--scope must be one of tensor, model",)),
    (["ties", *MODELS, *BASE, "--density", "20", *OUT], 2, ("'density'", "[0, 1]", "0.2")),
    (["ties", *MODELS, *BASE, "--density", "1", "--density", "1", *OUT], 2, ("--density is there twice",)),
    (["ties", *MODELS, *BASE, "--density", "nan", *OUT], 2, ("--density must be a number", "finite")),
    (["ties", *MODELS, *BASE, "--weights", "1", "1", *OUT], 2, ("2 weights for 3 models",)),
    (["ties", *MODELS, *BASE, "--weights", "a,b,c", *OUT], 2, ("weight 1 must be a number. Got 'a'", "weight 3", "./7")),
    (["ties", *MODELS, *BASE, "--weights", *OUT], 2, ("weight 1",)),
    (["ties", *MODELS, *OUT], 2, ("ties needs a base", "base")),
    (["ties", "--weights", "1", *BASE, *OUT], 2, ("no models to merge",)),
    (["linear", *MODELS, *BASE, *OUT], 2, ("linear takes no base", "base.safetensors")),
    (["tise", *MODELS, *OUT], 2, ("There is no merge method 'tise'. Did you mean 'ties'?",)),
    (["linear", *MODELS], 2, ("-o OUT.safetensors",)),
    ([*OUT], 2, ("name a merge method or a recipe first",)),
    (["slerp", *MODELS, *OUT], 2, ("slerp takes exactly 2 models; 3 were given",)),
    (["fisher", "--stats", "fisher", "x", *MODELS, *OUT], 2, ("no models to merge", "--stats takes every word")),
    (["fisher", *MODELS, "--stats", "fisher", "x", *OUT], 2, ("names 1 files for 3 models",)),
    (["fisher", *MODELS, *OUT], 2, ("fisher",)),
    (["linear", "A.safetensors", "D.safetensors", *OUT], 4, ("no file D.safetensors. Did you mean",)),
    (["linear", *MODELS, "-o", "A.safetensors", "--overwrite"], 4, ("A.safetensors", "input")),
    (["linear", *MODELS, *OUT, "--memory", "lots"], 2, ("'memory'", "2GB", "lots")),
    (["linear", *MODELS, *OUT, "--threads", "0"], 2, ("'threads'",)),
    (["linear", *MODELS, *OUT, "--device", "tpu"], 2, ("tpu", "cpu or cuda")),
    (["linear", *MODELS, *OUT, "--executor", "dask"], 2, ("no executor 'dask'", "ray")),
    (["linear", *MODELS, *OUT, "--digests", "md5"], 2, ("no digests 'md5'", "sha256")),
    (["linear", *MODELS, *OUT, "--compat", "mergkit"], 2, ("mergekit",)),
    (["linear", *MODELS, *OUT, "--dtype", "float17"], 2, ("float17", "float16")),
    (["recipe.yaml", "A.safetensors", *BASE, "--density", "1", "--weights", "1", *OUT], 2,
     ("--base, --weights, --density, A.safetensors", "the recipe recipe.yaml says what is merged")),
    (["none.yaml", *OUT], 2, ("no recipe none.yaml",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"), WRONG, ids=[" ".join(w)[:60] for w, _, _ in WRONG]
)
def test_what_is_typed_wrongly(
    words: list[str], code: int, said: tuple[str, ...], folder: Path, capsys: Capture
) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    before = sorted(folder.iterdir())
    done = run(capsys, ["merge", *words])
    assert done.code == code, done.err
    text = _flat(done)
    for each in said:
        assert each in text, done.err
    assert "Traceback" not in done.err
    assert "not foreseen" not in done.err
    assert sorted(folder.iterdir()) == before


def _flat(done: Finished) -> str:
    """Standard error without the frames and line breaks of usage errors."""
    return " ".join(done.err.replace("│", " ").split())


def test_words_are_told_apart() -> None:
    words = (
        "ties A --weights 1 -2 B --density .5,1 --flag C --stats fisher x y --out o --json -- --w"
    )
    typed = sorted_arguments(words.split(), {"--out"}, {"--json"})
    assert typed.declared == [
        "ties",
        "A",
        "--weights=1,-2",
        "B",
        "C",
        "--out",
        "o",
        "--json",
        "--",
        "--w",
    ]
    assert typed.options == [("--density", [".5,1"]), ("--flag", [])]
    assert typed.stats == {"fisher": ["x", "y"]}
