"""Recipes as mergekit's users write them, and what they come to as arguments of a merge."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alloykit.errors import CheckpointError
from alloykit.execution.schedules import ByName, Gradient
from alloykit.recipes.reading import read_recipe
from alloykit.recipes.recipe import Recipe

Arguments = Callable[[str], dict[str, Any]]


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """Reads a recipe in a folder with models; paths come back as their names."""
    for name in ("base", "a", "b", "c", "d"):
        (tmp_path / name).mkdir()

    def read(text: str) -> dict[str, Any]:
        path = tmp_path / "recipe.yaml"
        path.write_text(textwrap.dedent(text))
        return _short(read_recipe(path).arguments())

    return read


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return Path(value).name if isinstance(value, str) else value


LINEAR = """
    models:
      - model: a
        parameters:
          weight: 1.0
      - model: b
        parameters:
          weight: 0.3
    merge_method: linear
    dtype: float16
"""
SLERP = """
    models:
      - model: b
      - model: a
    merge_method: slerp
    base_model: a
    parameters:
      t:
        - filter: self_attn
          value: [0, 0.5, 0.3, 0.7, 1]
        - filter: mlp
          value: [1, 0.5, 0.7, 0.3, 0]
        - value: 0.5 # fallback for rest of tensors
    dtype: bfloat16
"""
TIES = """
    models:
      - model: a
        parameters:
          density: [1, 0.7, 0.1] # density gradient
          weight: 1.0
      - model: b
        parameters:
          density: 0.5
          weight: [0, 0.3, 0.7, 1] # weight gradient
      - model: c
        parameters:
          density: 0.33
          weight:
            - filter: mlp
              value: 0.5
            - value: 0
    merge_method: ties
    base_model: base
    parameters:
      normalize: true
      int8_mask: true
    dtype: float16
"""
DARE = """
    models:
      - model: base
        # No parameters necessary for base model
      - model: a
        parameters: {density: 0.53, weight: 0.4}
      - model: b
        parameters: {density: 0.53, weight: -0.3}
    merge_method: dare_ties
    base_model: base
    parameters:
      int8_mask: true
    dtype: bfloat16
"""


def test_linear(arguments: Arguments) -> None:
    assert arguments(LINEAR) == {
        "models": ["a", "b"], "method": "linear", "weights": [1.0, 0.3], "dtype": torch.float16,
    }  # fmt: skip


def test_slerp_goes_from_the_base_whatever_the_order(arguments: Arguments) -> None:
    assert arguments(SLERP) == {
        "models": ["a", "b"], "method": "slerp", "dtype": torch.bfloat16,
        "parameters": {"t": ByName({
            "*self_attn*": Gradient([0, 0.5, 0.3, 0.7, 1]),
            "*mlp*": Gradient([1, 0.5, 0.7, 0.3, 0]), "*": 0.5,
        })},
    }  # fmt: skip


def test_slerp_with_a_base_that_is_not_listed(arguments: Arguments) -> None:
    text = "{merge_method: slerp, base_model: a, models: [{model: b}], parameters: {t: 0.3}}"
    assert arguments(text)["models"] == ["a", "b"]


def test_ties(arguments: Arguments) -> None:
    assert arguments(TIES) == {
        "models": ["a", "b", "c"], "method": "ties", "base": "base", "dtype": torch.float16,
        "weights": [1.0, Gradient([0, 0.3, 0.7, 1]), ByName({"*mlp*": 0.5, "*": 0})],
        "parameters": {"density": [Gradient([1, 0.7, 0.1]), 0.5, 0.33], "normalize": True},
    }  # fmt: skip


def test_dare_ties_with_the_base_among_the_models(arguments: Arguments) -> None:
    assert arguments(DARE) == {
        "models": ["a", "b"], "method": "dare_ties", "base": "base", "weights": [0.4, -0.3],
        "parameters": {"density": [0.53, 0.53]}, "dtype": torch.bfloat16,
    }  # fmt: skip


SHORT = [
    (("{merge_method: task_arithmetic, base_model: base, models: [{model: a, parameters: {weight: -1}}],"
     " parameters: {lambda: 0.7, normalize: false}}"),
     {"models": ["a"], "base": "base", "weights": [-1], "parameters": {"scale": 0.7, "normalize": False}}),
    (("{merge_method: dare_linear, base_model: base, models: [{model: a}, {model: b}],"
     " parameters: {weight: 0.5, density: 0.4, rescale: true}}"),
     {"models": ["a", "b"], "base": "base", "weights": [0.5, 0.5],
      "parameters": {"density": 0.4, "rescale": True}}),
    (("{merge_method: model_stock, base_model: base, models: [{model: a}, {model: b}, {model: c}],"
     " parameters: {filter_wise: false}}"),
     {"models": ["a", "b", "c"], "base": "base", "parameters": {"filter_wise": False}}),
    ("{merge_method: karcher, models: [{model: a}, {model: b}], parameters: {max_iter: 10, tol: 1e-5}}",
     {"models": ["a", "b"], "parameters": {"max_iter": 10, "tol": 1e-5}}),
    ("{merge_method: nearswap, base_model: a, models: [{model: a}, {model: b}], parameters: {t: 0.001}}",
     {"models": ["b"], "base": "a", "parameters": {"t": 0.001}}),
    (("{merge_method: nuslerp, models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters:"
     " {weight: 0.5}}], base_model: base, parameters: {nuslerp_flatten: false, nuslerp_row_wise: on}}"),
     {"models": ["a", "b"], "base": "base", "weights": [0.5, 0.5],
      "parameters": {"flatten": False, "row_wise": True}}),
    ("{merge_method: multislerp, models: [{model: a}, {model: b}, {model: c}], parameters: {weight: 1}}",
     {"models": ["a", "b", "c"], "weights": [1, 1, 1]}),
    (("{merge_method: passthrough, models: [{model: a, parameters: {scale: [{filter: o_proj, value: 0},"
     " {value: 1}]}}]}"),
     {"models": ["a"], "parameters": {"scale": ByName({"*o_proj*": 0, "*": 1})}}),
    (("{merge_method: breadcrumbs, base_model: base, models: [{model: a, parameters: {weight: 1,"
     " density: 0.9, gamma: 0.01}}]}"),
     {"models": ["a"], "base": "base", "weights": [1], "parameters": {"density": [0.9], "gamma": [0.01]}}),
    ("{merge_method: breadcrumbs_ties, base_model: base, models: [{model: a}], parameters: {density: 0.9}}",
     {"models": ["a"], "base": "base", "parameters": {"density": 0.9}}),
    (("{merge_method: della, base_model: base, models: [{model: a, parameters: {weight: 1, density: 0.7,"
     " epsilon: 0.1}}], parameters: {lambda: 1.1}}"),
     {"models": ["a"], "base": "base", "weights": [1],
      "parameters": {"density": [0.7], "epsilon": [0.1], "scale": 1.1}}),
    ("{merge_method: della_linear, base_model: base, models: [{model: a}], parameters: {density: 0.5}}",
     {"models": ["a"], "base": "base", "parameters": {"density": 0.5}}),
    (("{merge_method: sce, base_model: base, models: [{model: a}, {model: b}], parameters:"
     " {select_topk: 0.1, int8_mask: true}}"),
     {"models": ["a", "b"], "base": "base", "parameters": {"select_topk": 0.1}}),
    ("{merge_method: arcee_fusion, base_model: a, models: [{model: a}, {model: b}]}",
     {"models": ["b"], "base": "a"}),
    ("{merge_method: ram, base_model: base, models: [{model: a}, {model: b}], parameters: {epsilon: 1e-5}}",
     {"models": ["a", "b"], "base": "base", "parameters": {"epsilon": 1e-5}}),
    (("{merge_method: ramplus_tl, base_model: base, models: [{model: a}, {model: b}], parameters: {r: 0.1,"
     " alpha: 0.2}}"),
     {"models": ["a", "b"], "base": "base", "parameters": {"r": 0.1, "alpha": 0.2}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SHORT, ids=[text[15:30] for text, _ in SHORT])
def test_every_method_of_mergekit(
    text: str, expected: dict[str, Any], arguments: Arguments
) -> None:
    found = arguments(text)
    assert found.pop("method") in text
    assert found == expected


def test_filters_fall_through_to_the_recipes_own_parameters(arguments: Arguments) -> None:
    found = arguments("""
        merge_method: ties
        base_model: base
        models:
          - model: a
            parameters: {density: [{filter: mlp, value: 0.9}], weight: [{filter: lm_head, value: 0}]}
          - model: b
        parameters: {density: [{filter: attn, value: [0.1, 0.2]}, {filter: "*", value: 0.5}], weight: 2}
    """)
    common = [("*attn*", Gradient([0.1, 0.2])), ("*", 0.5)]
    assert found["parameters"]["density"] == [ByName([("*mlp*", 0.9), *common]), ByName(common)]
    assert found["weights"] == [ByName({"*lm_head*": 0, "*": 2}), 2]


def test_filters_end_in_the_methods_default(arguments: Arguments) -> None:
    found = arguments(
        "{merge_method: slerp, models: [{model: a}, {model: b}], parameters: {t: {filter: mlp, value: 1}}}"
    )
    assert found["parameters"]["t"] == ByName({"*mlp*": 1, "*": 0.5})


def test_filters_are_parts_of_names_and_globs_are_whole_names(arguments: Arguments) -> None:
    found = arguments(
        "{merge_method: slerp, models: [{model: a}, {model: b}], parameters: {t: [{filter: 'h.1*', value:"
        " 1}, {filter: 'h?', value: 0}, {filter: h.1, value: 0.25}]}}"
    )
    assert found["parameters"]["t"] == ByName({"h.1*": 1, "h?": 0, "*h.1*": 0.25, "*": 0.5})


def test_our_own_keys(arguments: Arguments) -> None:
    found = arguments("""
        merge_method: ties
        base_model: base
        models: [{model: a, name: math}, {model: b, name: code}]
        weights: [1, 0.5]
        out_dtype: float32
        dtype: torch.bfloat16
        seed: 3
        compat: mergekit
    """)
    assert found == {
        "models": {"math": "a", "code": "b"}, "method": "ties", "base": "base",
        "weights": [1.0, 0.5], "dtype": torch.float32, "seed": 3, "compat": "mergekit",
    }  # fmt: skip


def test_statistics_come_in_the_models_order(arguments: Arguments, tmp_path: Path) -> None:
    for name in ("fa.safetensors", "fb.safetensors"):
        (tmp_path / name).touch()
    found = arguments("""
        merge_method: fisher
        models:
          - {model: b, stats: {fisher: fb.safetensors}}
          - {model: a, stats: {fisher: fa.safetensors}}
    """)
    assert found["stats"] == {"fisher": ["fb.safetensors", "fa.safetensors"]}


def test_paths_start_at_the_recipes_folder_and_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in ("home/a.pt", "recipes/b.pt", "abs+c@1.pt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    recipe = tmp_path / "recipes" / "r.yaml"
    last = tmp_path / "abs+c@1.pt"
    recipe.write_text(
        f"{{merge_method: linear, models: [{{model: ~/a.pt}}, {{model: b.pt#ema}}, {{model: {last}}}]}}"
    )
    assert read_recipe(recipe).arguments()["models"] == [
        str(tmp_path / "home" / "a.pt"), str(tmp_path / "recipes" / "b.pt#ema"), str(last),
    ]  # fmt: skip


def test_every_model_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here.pt").touch()
    (tmp_path / "recipes" / "tune-1.pt").touch()
    (tmp_path / "recipes" / "link.pt").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    names = ["mistralai/Mistral-7B-v0.1", "a.pt+lora", "a@main", "here.pt", "tune1.pt", "link.pt",
             "~nobody-here/x", "x\0y"]  # fmt: skip
    recipe = Recipe.of({"models": names, "method": "ties", "base": "base.pt"})
    with pytest.raises(CheckpointError) as raised:
        recipe.located(Path("recipes/r.yaml")).arguments()
    said = str(raised.value)
    assert said.startswith("9 files of recipes/r.yaml cannot be opened:")
    for words in (
        "models[0].model: there is no mistralai/Mistral-7B-v0.1 on this machine. If it is a name on a hub",
        "models[1].model: there is no a.pt+lora. If lora is a LoRA adapter",
        "models[2].model: there is no a@main. Revisions (@main) are not looked up",
        "models[3].model: there is no recipes/here.pt; there is one in the working folder.",
        "models[4].model: there is no tune1.pt. Did you mean tune-1.pt?",
        "models[5].model: link.pt is a link to a file that does not exist.",
        "models[6].model: ~nobody-here/x is no path that can be opened",
        "base_model: there is no base.pt.",
        f"Relative paths start at the recipe's folder, {tmp_path}/recipes.",
    ):
        assert words in said
