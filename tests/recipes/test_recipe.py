"""Recipes of calls of ``merge``, and back: the same arguments after YAML as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloykit.errors import InvalidRecipe
from alloykit.execution.schedules import ByName, Gradient, Layers, resolved
from alloykit.recipes.reading import read_recipe
from alloykit.recipes.recipe import Recipe, recipe_schema

NAMES = [
    "embed",
    *(f"h.{i}.{part}" for i in range(4) for part in ("mlp.w", "attn.w")),
    "lm_head",
    "x.lm_head.y",
]


def again(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The arguments after writing and reading, paths as their names."""
    path = folder / "r.yaml"
    path.write_text(recipe.to_yaml())
    arguments = read_recipe(path).arguments()
    return {**arguments, "models": [Path(model).name for model in arguments["models"]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "base"):
        (folder / name).mkdir()
    return folder


numbers = st.floats(0, 1).map(lambda x: round(x, 6)) | st.sampled_from([0, 1, 1e-30, 0.1])
gradients = st.lists(numbers, min_size=1, max_size=4).map(Gradient)
globs = st.sampled_from(["*mlp*", "h.?.attn.w", "lm_head", "h.1*", "*.w", "!odd", "h.[12].*"])
rules = st.lists(st.tuples(globs, numbers | gradients), min_size=1, max_size=3).map(
    lambda pairs: ByName([*pairs, ("*", 0.5)])
)
values = numbers | gradients | rules


@settings(max_examples=60, deadline=None)
@given(
    weights=st.tuples(values, values),
    density=values | st.tuples(values, values).map(list),
    scale=values,
)
def test_the_same_at_every_tensor_after_yaml(
    folder: Path, weights: tuple[Any, Any], density: Any, scale: Any
) -> None:
    arguments = {
        "models": ["a", "b"], "base": "base", "method": "ties", "weights": list(weights),
        "parameters": {"density": density, "scale": scale}, "seed": 5, "dtype": torch.bfloat16,
        "compat": "mergekit",
    }  # fmt: skip
    found = again(Recipe.of(arguments), folder)
    layers = Layers.of(NAMES)
    for name in NAMES:
        assert resolved(found["weights"], name, layers) == resolved(list(weights), name, layers)
        for key, value in (("density", density), ("scale", scale)):
            assert resolved(found["parameters"][key], name, layers) == resolved(value, name, layers)
    for key in ("seed", "dtype", "compat", "method", "models"):
        assert found[key] == arguments[key]


def test_names_statistics_and_lists_inside_rules(folder: Path) -> None:
    for name in ("fa", "fb"):
        (folder / name).touch()
    recipe = Recipe.of(
        {
            "models": {"math": "a", "code": folder / "b"}, "method": "fisher", "output": "ignored",
            "stats": {"fisher": ["fa", "fb"]}, "weights": {"code": 2, "math": 1},
        }
    )  # fmt: skip
    path = folder / "named.yaml"
    path.write_text(recipe.to_yaml())
    found = read_recipe(path).arguments()
    assert found == {
        "models": {"math": str(folder / "a"), "code": str(folder / "b")}, "method": "fisher",
        "stats": {"fisher": [str(folder / "fa"), str(folder / "fb")]}, "weights": [1, 2],
    }  # fmt: skip
    own = Recipe.of({"models": ["a", "b"], "method": "ties", "base": "base",
                     "parameters": {"density": {"*mlp*": [0.1, 0.2], "*": 0.3}}})  # fmt: skip
    density = again(own, folder)["parameters"]["density"]
    assert density == [ByName({"*mlp*": 0.1, "*": 0.3}), ByName({"*mlp*": 0.2, "*": 0.3})]


def test_it_reads_like_a_recipe_written_by_hand() -> None:
    recipe = Recipe.of(
        {"models": ["a", "b"], "method": "ties", "base": "base", "weights": [1, Gradient([0, 0.5])],
         "parameters": {"scale": ByName({"*mlp*": 0.5, "*": 1}), "normalize": False}, "seed": 0}
    )  # fmt: skip
    assert (
        recipe.to_yaml()
        == """\
merge_method: ties
models:
- model: a
  parameters:
    weight: 1
- model: b
  parameters:
    weight: [0, 0.5]
base_model: base
parameters:
  lambda:
  - filter: '*mlp*'
    value: 0.5
  - value: 1
  normalize: false
seed: 0
"""
    )


def test_models_in_memory_have_no_recipe() -> None:
    with pytest.raises(InvalidRecipe, match="Save the models that are in memory first"):
        Recipe.of({"models": [{"w": torch.zeros(1)}]})


def test_arguments_of_a_recipe_with_mistakes_are_refused() -> None:
    recipe = Recipe.model_validate(
        {"merge_method": "ties", "models": [{"model": "a"}], "parameters": {"density": 2}}
    )
    with pytest.raises(InvalidRecipe, match=r"The recipe has 2 mistakes:\n  ties needs a base"):
        recipe.arguments()


def test_what_changes_nothing_is_said(folder: Path) -> None:
    path = folder / "notes.yaml"
    path.write_text(
        "{merge_method: ties, base_model: base, parameters: {int8_mask: true}, models: "
        "[{model: base, parameters: {weight: 1}}, {model: a}]}"
    )
    assert read_recipe(path).notes() == [
        "base is the base: its own parameters (weight) have no effect, as in mergekit.",
        ("int8_mask has no effect: it chooses how mergekit keeps its masks; results do not depend on "
        "it."),
    ]  # fmt: skip


def test_the_schema_names_every_key_and_every_method() -> None:
    schema = recipe_schema()
    assert set(schema["required"]) == {"merge_method", "models"}
    assert {"ties", "linear", "slerp"} <= set(schema["properties"]["merge_method"]["enum"])
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Recipe.model_fields)
