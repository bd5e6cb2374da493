"""A recipe as the arguments of ``alloykit.merge``, and such arguments as a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alloykit.errors import InvalidRecipe
from alloykit.execution.schedules import ByName
from alloykit.recipes.parameters import (
    OURS,
    WEIGHT,
    WITHOUT_EFFECT,
    Parameter,
    parameters_of,
    python_name,
)
from alloykit.recipes.references import resolved_paths
from alloykit.recipes.roles import Roles, roles_of
from alloykit.recipes.schema import DTYPES, RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.recipes.values import NOTHING, first_found, written
from alloykit.registry import Entry, merge_methods


def merge_arguments(
    recipe: RecipeContent, folder: Path, where: str, lines: Mapping[Place, int]
) -> dict[str, Any]:
    """The keyword arguments of ``alloykit.merge`` that a recipe without mistakes stands for.

    Args:
        recipe: The recipe.
        folder: Where its relative paths start.
        where: What messages call it.
        lines: Place -> line of its file.

    Raises:
        CheckpointError: Models that are not there; all are listed.
    """
    entry = merge_methods.entry(recipe.merge_method)
    roles = roles_of(recipe, entry)
    stats = _stats(roles)
    references = [
        *(
            (place if place == ("base_model",) else (*place, "model"), each.model)
            for place, each in roles.members
        ),
        *([(("base_model",), roles.base)] if roles.base else []),
        *(
            ((*place, "stats", kind), path)
            for place, each in roles.members
            for kind, path in (each.stats or {}).items()
        ),
    ]
    at = resolved_paths(references, folder, where, lines)
    paths = [at[each.model] for _, each in roles.members]
    names = [each.name for _, each in roles.members]
    found: dict[str, Any] = {
        "models": dict(zip(names, paths, strict=True)) if all(names) else paths,
        "method": recipe.merge_method,
        "base": at[roles.base] if roles.base else None,
        "weights": _weights(recipe, roles),
        "parameters": _parameters(recipe, roles, entry),
        "compat": recipe.compat,
        "stats": {kind: [at[path] for path in each] for kind, each in stats.items()},
        "dtype": _dtype(recipe.out_dtype or recipe.dtype),
        "seed": recipe.seed,
    }
    return {key: value for key, value in found.items() if value not in (None, {})}


def conversion_notes(recipe: RecipeContent) -> list[str]:
    """What a recipe says that changes nothing here, and why."""
    entry = merge_methods.entry(recipe.merge_method)
    every = [recipe.parameters or {}, *(each.parameters or {} for each in recipe.models)]
    idle = {name for parameters in every for name in parameters if name in WITHOUT_EFFECT}
    return [
        *roles_of(recipe, entry).notes,
        *(f"{name} has no effect: it {WITHOUT_EFFECT[name]}." for name in sorted(idle)),
    ]


def recipe_content(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe from keyword arguments of ``alloykit.merge``.

    What says how a merge is run, and not what it computes (``output``, ``memory``), is left out.

    Raises:
        InvalidRecipe: Models that are not paths.
    """
    models = arguments["models"]
    pairs = list(models.items() if isinstance(models, Mapping) else ((None, m) for m in models))
    method, base = arguments.get("method", "linear"), arguments.get("base")
    if not all(isinstance(path, str | Path) for path in [*(p for _, p in pairs), base or ""]):
        raise InvalidRecipe("A recipe names files. Save the models that are in memory first.")
    entry = merge_methods.entry(method)
    shared, own = _split_by_member(arguments.get("parameters") or {}, len(pairs), entry)
    weights = _in_order(arguments.get("weights"), [name for name, _ in pairs])
    for index, weight in enumerate(weights or ()):
        own[index] = {WEIGHT: written(weight), **own[index]}
    stats = arguments.get("stats") or {}
    dtype = arguments.get("dtype")
    content = {
        "merge_method": method,
        "base_model": None if base is None else str(base),
        "models": [
            _without_empty(
                {
                    "model": str(path),
                    "name": None if name is None else str(name),
                    "parameters": own[index],
                    "stats": {kind: str(files[index]) for kind, files in stats.items()},
                }
            )
            for index, (name, path) in enumerate(pairs)
        ],
        "parameters": shared,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "seed": arguments.get("seed"),
        "compat": arguments.get("compat"),
    }
    return _without_empty(content)


def _weights(recipe: RecipeContent, roles: Roles) -> list[Any] | None:
    if recipe.weights is not None:
        return list(recipe.weights)
    common = (recipe.parameters or {}).get(WEIGHT)
    own = [(each.parameters or {}).get(WEIGHT) for _, each in roles.members]
    if common is None and not any(weight is not None for weight in own):
        return None
    return [first_found([weight, common]) for weight in own]


def _parameters(recipe: RecipeContent, roles: Roles, entry: Entry) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters_of(entry).items():
        common = _given(recipe.parameters, name, entry)
        own = [_given(each.parameters, name, entry) for _, each in roles.members]
        default = NOTHING if parameter.required else parameter.default
        if any(value is not None for value in own):
            values = [first_found([value, common], default) for value in own]
            each = [_accepted(default if value is None else value, parameter) for value in values]
            found[name] = each if name in entry.contract["per_member"] else each[0]
        elif common is not None:
            found[name] = _accepted(first_found([common], default), parameter)
    return found


def _given(parameters: Mapping[str, Any] | None, name: str, entry: Entry) -> Any:
    for key, value in (parameters or {}).items():
        if python_name(key, entry) == name:
            return value
    return None


def _accepted(value: Any, parameter: Parameter) -> Any:
    """The schedule with its single values as the method takes them."""
    if isinstance(value, ByName):
        return ByName([(glob, _accepted(each, parameter)) for glob, each in value.rules])
    return parameter.accepted(value)


def _stats(roles: Roles) -> dict[str, list[str]]:
    kinds = dict.fromkeys(kind for _, each in roles.members for kind in each.stats or {})
    return {kind: [(each.stats or {}).get(kind, "") for _, each in roles.members] for kind in kinds}


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    assert name in DTYPES
    found: torch.dtype = getattr(torch, name)
    return found


def _split_by_member(
    parameters: Mapping[str, Any], count: int, entry: Entry
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parameters that hold for all, and those of each member."""
    theirs = {ours: name for name, ours in OURS.items()}
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in range(count)]
    many = entry.contract["per_member"]
    for name, value in parameters.items():
        key = theirs.get(name, name)
        if name in many and any(isinstance(each, list | tuple) for each in _leaves(value)):
            for index in range(count):
                own[index][key] = written(_for_member(value, index))
        elif value is not None:
            shared[key] = written(value)
    return shared, own


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, ByName | Mapping):
        for _, each in ByName(value).rules if isinstance(value, Mapping) else value.rules:
            yield from _leaves(each)
    else:
        yield value


def _for_member(value: Any, index: int) -> Any:
    if isinstance(value, Mapping):
        value = ByName(value)
    if isinstance(value, ByName):
        return ByName([(glob, _for_member(each, index)) for glob, each in value.rules])
    return value[index] if isinstance(value, list | tuple) else value


def _in_order(
    weights: Sequence[Any] | Mapping[str, Any] | None, names: Sequence[str | None]
) -> list[Any] | None:
    if isinstance(weights, Mapping):
        return [weights[str(name)] for name in names]
    return None if weights is None else list(weights)


def _without_empty(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None and value != {}}
