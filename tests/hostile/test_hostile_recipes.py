"""Recipes made to break something: one clear error that names file and key, nothing written, fast."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import alloykit
from command_line import run

SECONDS = 3
USAGE, CHECKPOINT = 2, 4
TWO = "models:\n- model: a.safetensors\n- model: b.safetensors\n"
LINEAR = f"merge_method: linear\n{TWO}"
TIES = f"merge_method: ties\nbase_model: base.safetensors\n{TWO}"


@dataclass(frozen=True)
class Case:
    """A bad recipe: what it holds, and what the error must say."""

    name: str
    content: str | bytes | Callable[[Path], None]
    words: tuple[str, ...]
    code: int = USAGE


def weighed(word: str) -> str:
    return f"merge_method: linear\nmodels:\n- model: a.safetensors\n  parameters:\n    weight: {word}\n- model: b.safetensors\n  parameters: {{weight: 1}}\n"


def bomb() -> str:
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


def mapping_bomb() -> str:
    lines = ["x0: &x0 {a: lol, b: lol, c: lol}"]
    lines += [f"x{i}: &x{i} {{a: *x{i - 1}, b: *x{i - 1}, c: *x{i - 1}}}" for i in range(1, 30)]
    return "\n".join(lines)


def in_place_of_the_recipe(make: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: (make(folder / "recipe.yaml"), None)[1]


W = "line 5: models[0].parameters.weight"
CASES = [
    # YAML that is none, or that YAML's readers differ on.
    Case("empty", b"", ("is empty", "merge_method")),
    Case("only a comment", b"# to do\n", ("is empty", "merge_method")),
    Case("only null", b"~\n", ("is empty",)),
    Case("a list", b"- merge_method: linear\n", ("not a mapping of keys",)),
    Case("a word", b"linear\n", ("not a mapping of keys",)),
    Case("a number", b"42\n", ("not a mapping of keys",)),
    Case("two documents", f"{LINEAR}---\n{TIES}", ("line 5", "second document", "---")),
    Case("tabs", "merge_method: linear\nmodels:\n\t- model: a.safetensors\n", ("line 3", "tab")),
    Case("an unclosed bracket", "merge_method: linear\nmodels: [{model: a.safetensors}", ("line", "not YAML")),
    Case("an unclosed quote", "merge_method: 'linear\n", ("line", "not YAML")),
    Case("a colon too many", "merge_method: linear: ties\n", ("line 1", "not YAML")),
    Case("odd indentation", "merge_method: linear\n  models: []\n", ("line 2", "not YAML")),
    Case("control characters", b"merge_method: lin\x00ear\n", ("not YAML",)),
    Case("not UTF-8", b"merge_method: \xff\xfe\n", ("not UTF-8", "line 1")),
    Case("UTF-16", "merge_method: linear\n".encode("utf-16"), ("not UTF-8", "line 1")),
    Case("Latin-1", "# Mischung für März\nmerge_method: linear\n".encode("latin-1"), ("not UTF-8",)),
    Case("a checkpoint as recipe", lambda f: (f / "recipe.yaml").write_bytes((f / "a.safetensors").read_bytes()) and None,
         ("not UTF-8",)),
    Case("ten megabytes", b"a: 1\n" * 2_000_000, ("10.0 MB", "at most")),
    Case("half a megabyte of values", "models: [" + "0," * 250_000 + "]", ("50,000 values",)),
    Case("half a megabyte of keys", "".join(f"k{i}: 1\n" for i in range(60_000)), ("50,000 values",)),
    Case("nested lists", b"models: " + b"[" * 200_000, ("nested more than 20 deep",)),
    Case("nested mappings", b"{a: " * 100_000, ("nested more than 20 deep",)),
    Case("nested dashes", b"models:\n" + b"- " * 100_000, ("nested more than 20 deep",)),
    Case("billion laughs", bomb, ("50,000 values",)),
    Case("billion laughs in mappings", mapping_bomb, ("50,000 values",)),
    Case("an alias that holds itself", "models: &m\n- *m\n", ("line 2", "*m", "holds itself")),
    Case("an alias to nothing", "models: *m\n", ("line 1", "*m")),
    Case("a tag that runs code", "models: !!python/object/apply:os.system ['touch ran']\n",
         ("line 1", "os.system", "plain value")),
    Case("a tag of one's own", "!recipe\nmerge_method: linear\n", ("line 1", "!recipe")),
    Case("a tag on a number", weighed("!!float '1'"), ("line 5", "the tag")),
    Case("a key given twice", f"{LINEAR}merge_method: ties\n", ("line 5", "merge_method", "twice", "line 1")),
    Case("a weight given twice", weighed("1\n    weight: 2"), ("line 6", "'weight' is there twice")),
    Case("merge keys", f"x: &x {{weight: 1}}\n{LINEAR}parameters:\n  <<: *x\n", ("line 7", "merge keys")),
    Case("duplicate merge keys", "models:\n- &a {model: x}\n- {<<: *a, <<: *a}\n", ("line 3", "merge keys")),
    Case("a key that is a list", f"{LINEAR}? [a, b]\n: 1\n", ("line 5", "key must be plain text")),
    # Weights that are no numbers.
    Case("a weight of yes", weighed("yes"), (W, "'yes'", "truth value")),
    Case("a weight of Off", weighed("Off"), (W, "'Off'", "truth value")),
    Case("a weight of true", weighed("true"), (W, "Got true")),
    Case("an octal weight", weighed("010"), (W, "'010'", "leading zero")),
    Case("another octal weight", weighed("0o10"), (W, "'0o10'", "decimal")),
    Case("a hexadecimal weight", weighed("0x10"), (W, "'0x10'", "decimal")),
    Case("a sexagesimal weight", weighed("1:30"), (W, "'1:30'", "base 60")),
    Case("a weight with underscores", weighed("1_0"), (W, "'1_0'", "underscores")),
    Case("a weight with a comma", weighed("0,5"), (W, "'0,5'", "point")),
    Case("a weight in percent", weighed("50%"), (W, "'50%'", "0.5")),
    Case("a weight that is a date", weighed("2026-01-02"), (W, "'2026-01-02'")),
    Case("a weight of NaN", weighed(".nan"), (W, "finite", "nan")),
    Case("a weight of infinity", weighed("-.inf"), (W, "finite", "-inf")),
    Case("a weight too large for a number", weighed("1e999"), (W, "finite", "inf")),
    Case("a weight in quotes", weighed("'0.5'"), (W, "'0.5'", "quotes")),
    Case("no weight", weighed(""), (W, "is empty")),
    Case("a weight of null", weighed("null"), (W, "is empty")),
    Case("an empty gradient", weighed("[]"), (W, "empty list")),
    Case("a gradient of several kinds", weighed("[0.1, half]"), (W, "mixes")),
    Case("a gradient with a hole", weighed("[0.1, ~, 1]"), (f"{W}[1]", "single value")),
    Case("weights inside weights", weighed("{value: {value: 1}}"), (f"{W}.value", "filters itself")),
    Case("a filter misspelt", weighed("[{filtr: mlp, value: 1}, {value: 1}]"), (f"{W}[0].filtr", "'filter'")),
    Case("a filter without value", weighed("[{filter: mlp}]"), (f"{W}[0]", "no value")),
    Case("filters that leave tensors out", weighed("[{filter: mlp, value: 1}]"), (W, "no filter matches")),
    Case("a rule that is never reached", weighed("[{value: 1}, {filter: mlp, value: 2}]"), (f"{W}[1]", "never reached")),
    Case("a negative weight", weighed("-1"), (W, "negative", "normalize: false")),
    Case("weights that are all zero", weighed("0").replace("weight: 1}", "weight: 0}"), (W, "all weights are zero")),
    Case("a weight for one model only", weighed("1").replace("parameters: {weight: 1}", "parameters: {}"),
         ("line 6: models[1]", "no weight")),
    Case("too many weights", f"{LINEAR}weights: [1, 1, 1]\n", ("line 5: weights", "3 weights for 2 models")),
    Case("weights twice", f"{LINEAR}weights: [1, 1]\nparameters: {{weight: 1}}\n", ("line 5: weights", "Give one")),
    # Names.
    Case("no method", TWO, ("merge_method", "is missing")),
    Case("no models", "merge_method: linear\n", ("models", "is missing")),
    Case("models that are empty", "merge_method: linear\nmodels: []\n", ("models", "0 are listed")),
    Case("models that are a mapping", "merge_method: linear\nmodels: {model: a.safetensors}\n", ("models", "list")),
    Case("models that are plain paths", "merge_method: linear\nmodels: [a.safetensors]\n", ("models[0]", "model: a.safetensors")),
    Case("one model for slerp", "merge_method: slerp\nmodels: [{model: a.safetensors}]\n", ("exactly 2 models", "1 is")),
    Case("a model twice", f"{LINEAR}- model: ./a.safetensors\n", ("line 5: models[2].model", "twice")),
    Case("an unknown method", f"merge_method: tise\n{TWO}", ("line 1: merge_method", "'tise'", "'ties'")),
    Case("a method with a dash", f"merge_method: dare-ties\n{TWO}", ("'dare-ties'", "'dare_ties'")),
    Case("a key misspelt", f"{LINEAR}base_modle: base.safetensors\n", ("line 5: base_modle", "'base_model'")),
    Case("a key in capitals", f"{LINEAR}DTYPE: float16\n", ("line 5: DTYPE", "no such key")),
    Case("a model's key misspelt", "merge_method: linear\nmodels:\n- modle: a.safetensors\n", ("models[0].modle", "'model'")),
    Case("parameters misspelt", f"{TIES}paramters: {{density: 0.5}}\n", ("line 6: paramters", "'parameters'")),
    Case("a parameter misspelt", f"{TIES}parameters: {{densty: 0.5}}\n", ("line 6: parameters.densty", "'density'")),
    Case("a parameter of another method", f"{LINEAR}parameters: {{density: 0.5}}\n", ("parameters.density", "linear has no")),
    Case("a density in percent", f"{TIES}parameters: {{density: 20}}\n", ("parameters.density", "[0, 1]", "0.2")),
    Case("a density below zero in a list", f"{TIES}parameters: {{density: [0.5, -1]}}\n", ("parameters.density[1]", "-1")),
    Case("a truth value that is a number", f"{TIES}parameters: {{normalize: 1}}\n", ("parameters.normalize", "true or false")),
    Case("a huge list as a value", f"{TIES}parameters: {{density: {[0.5] * 5000 + [7]}}}\n", ("parameters.density[5000]",)),
    Case("thousands of values", f"{TIES}parameters: {{density: {[i / 20_000 for i in range(20_000)] + [7]}}}\n",
         ("parameters.density[20000]",)),
    Case("an unknown dtype", f"{LINEAR}dtype: floot16\n", ("line 5: dtype", "floot16", "float16")),
    Case("an integer dtype", f"{LINEAR}out_dtype: int8\n", ("line 5: out_dtype", "int8")),
    Case("a negative seed", f"{LINEAR}seed: -1\n", ("line 5: seed", "-1")),
    Case("an unknown compat", f"{LINEAR}compat: mergkit\n", ("line 5: compat", "mergekit")),
    Case("no base", f"merge_method: ties\n{TWO}", ("ties needs a base", "base_model")),
    Case("a base of no use", f"{LINEAR}base_model: base.safetensors\n", ("line 5: base_model", "takes no base")),
    Case("control characters in a name", 'merge_method: "li\\ear\\n\\x1b[31m"\n', ("line 1",)),
    # What is not done yet, each by name.
    *(
        Case(f"{key} is not done yet", f"{LINEAR}{key}: {{source: union}}\n", (f"line 5: {key}", "Leave it out"))
        for key in ("modules", "tokenizer", "tokenizer_source", "chat_template")
    ),
    Case("slices are not done yet", "merge_method: slerp\nslices:\n- sources: []\n", ("line 2: slices", "under models")),
    Case("a mixture of experts", "base_model: a\ngate_mode: hidden\nexperts: []\n", ("gate_mode", "mergekit-moe")),
    # Files.
    Case("models that are not there", LINEAR.replace("a.safe", "aa.safe").replace("b.safe", "bb.safe"),
         ("2 files", "line 3: models[0].model", "aa.safetensors", "Did you mean a.safetensors"), CHECKPOINT),
    Case("a name on the hub", LINEAR.replace("a.safetensors", "org/model-7b"), ("org/model-7b", "hub", "download"), CHECKPOINT),
    Case("a LoRA adapter", LINEAR.replace("a.safetensors", "a.safetensors+lora"), ("lora", "adapter merged"), CHECKPOINT),
    Case("a revision", LINEAR.replace("a.safetensors", "a.safetensors@main"), ("@main", "download"), CHECKPOINT),
    Case("a home that is not there", LINEAR.replace("a.safetensors", "~nobody/a.pt"), ("~nobody/a.pt",), CHECKPOINT),
    Case("a path with a null", LINEAR.replace("a.safetensors", '"a\\0b"'), ("a\\x00b",), CHECKPOINT),
    Case("a path without end", LINEAR.replace("a.safetensors", "x" * 10_000), ("models[0].model",), CHECKPOINT),
    Case("a model that is a mapping", "merge_method: linear\nmodels: [{model: {path: a}}]\n", ("models[0].model", "path alone")),
    Case("a model that is a number", "merge_method: linear\nmodels: [{model: 7}]\n", ("models[0].model", "quotes")),
    Case("a model that is the recipe", LINEAR.replace("a.safe", "recipe.yaml#"), ("recipe.yaml",), CHECKPOINT),
    Case("a missing recipe", lambda f: None, ("There is no recipe", "recipe.yaml")),
    Case("a folder", in_place_of_the_recipe(Path.mkdir), ("is a folder",)),
    Case("a link to nothing", in_place_of_the_recipe(lambda p: p.symlink_to("nowhere")), ("There is no recipe",)),
    Case("a link to itself", in_place_of_the_recipe(lambda p: p.symlink_to(p.name)), ("recipe.yaml",)),
    Case("a pipe", in_place_of_the_recipe(os.mkfifo), ("not a regular file",)),
    Case("a device", in_place_of_the_recipe(lambda p: p.symlink_to("/dev/zero")), ("not a regular file",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, torch.Tensor]:
    """The tensors of a model."""
    return {"w": torch.ones(4), "mlp": torch.ones(2)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_recipe_gets_one_clear_error(
    case: Case,
    models: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b", "base"):
        alloykit.save_checkpoint(models, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    content = case.content
    if callable(content) and not isinstance(made := _made(content, tmp_path), str):
        assert made is None
    elif isinstance(content, bytes):
        recipe.write_bytes(content)
    else:
        recipe.write_text(made if callable(content) else content)
    before = sorted(tmp_path.rglob("*"))
    started = time.perf_counter()
    ended = run(capsys, ["merge", "recipe.yaml", "-o", "out.safetensors"])
    took = time.perf_counter() - started
    assert ended.code == case.code, ended.err
    assert ended.err.startswith("alloykit: ")
    assert "recipe.yaml" in ended.err
    for words in case.words:
        assert words in ended.err
    assert "Traceback" not in ended.err
    assert "not foreseen" not in ended.err
    assert len(ended.err) < 4000
    assert ended.err.isprintable() or set(ended.err) - {"\n"} == {
        letter for letter in ended.err if letter.isprintable()
    }
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    assert took < SECONDS


def _made(content: Callable[..., object], folder: Path) -> object:
    return content() if content in (bomb, mapping_bomb) else content(folder)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 45
    assert len({case.name for case in CASES}) == len(CASES)
