"""Weights and parameters of recipes, tensor by tensor: the same as mergekit resolves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alloykit.execution.schedules import Layers, resolved
from alloykit.recipes.reading import read_recipe

mergekit_config = pytest.importorskip("mergekit.config")
mergekit_registry = pytest.importorskip("mergekit.merge_methods.registry")
mergekit_resolver = pytest.importorskip("mergekit.parameter_resolver")
mergekit_common = pytest.importorskip("mergekit.common")

COUNT = 5
LAYERS = {
    f"model.layers.{i}.{part}.weight": i for i in range(COUNT) for part in ("mlp.up", "self_attn.q")
}
NAMES = ["model.embed_tokens.weight", *LAYERS, "model.norm.weight", "lm_head.weight"]

scalars = st.floats(0.0625, 0.9375).map(lambda x: round(x, 4))
gradients = st.lists(scalars, min_size=1, max_size=4)
filters = st.sampled_from(["mlp", "self_attn", "layers.1", "lm_head", "q.weight", "weight"])
rules = st.lists(
    st.fixed_dictionaries({"filter": filters, "value": scalars | gradients}), min_size=1, max_size=3
)
closed = st.builds(lambda some, last: [*some, {"value": last}], rules, scalars | gradients)
settings_ = scalars | gradients | rules | closed


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """TIES recipes whose weights and densities come from models, from the recipe, or from both."""
    models = [
        {
            "model": name,
            "parameters": {
                "weight": draw(scalars | gradients | closed),
                **({"density": draw(settings_)} if draw(st.booleans()) else {}),
            },
        }
        for name in ("a", "b")
    ]
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": models,
        "parameters": {
            "density": draw(scalars | gradients | closed),
            "lambda": draw(scalars | gradients | closed),
            "normalize": draw(st.booleans() | st.lists(st.booleans(), min_size=1, max_size=3)),
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "base"):
        (folder / name).mkdir()
    return folder


@settings(max_examples=80, deadline=None)
@given(content=recipes())
def test_the_same_at_every_tensor(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    arguments = read_recipe(path).arguments()
    layers = Layers.of(NAMES)
    for name in NAMES:
        shared, own = theirs(path.read_text(), name)
        ours = {k: resolved(v, name, layers) for k, v in arguments["parameters"].items()}
        density = ours["density"] if isinstance(ours["density"], list) else [ours["density"]] * 2
        assert density == [each["density"] for each in own]
        assert resolved(arguments["weights"], name, layers) == [each["weight"] for each in own]
        assert (ours["scale"], ours["normalize"]) == (shared["lambda"], shared["normalize"])


def theirs(text: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What mergekit's planner resolves for one tensor: shared parameters, and each model's."""
    config = mergekit_config.MergeConfiguration.model_validate(yaml.safe_load(text))
    models = [mergekit_common.ModelReference.parse(each) for each in ("a", "b")]
    own = {each.model: each.parameters for each in config.models}

    def sources(model: Any = None) -> Any:
        yield own.get(model) if model is not None else None
        yield config.parameters

    shared, per_input = mergekit_resolver.resolve_parameters(
        mergekit_registry.get("ties").spec,
        tensor_name=name,
        inputs=dict.fromkeys(models, name),
        sources=sources,
        base_model=config.base_model,
        t=LAYERS[name] / (COUNT - 1) if name in LAYERS else 0,
    )
    return shared, [per_input[model] for model in models]
