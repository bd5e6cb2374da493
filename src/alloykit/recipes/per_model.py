"""Which model has which weight and parameters of its own, and whether that goes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alloykit.errors import InvalidParameter
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.parameters import WEIGHT, parameters_of, python_name
from alloykit.recipes.roles import Roles
from alloykit.recipes.schema import RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.recipes.values import covers, first_found, number_mistake, scalars
from alloykit.registry import Entry

Section = tuple[Place, Mapping[str, Any]]
"""A place and the parameters that stand there."""


def sections_of(recipe: RecipeContent) -> list[Section]:
    """Every place where parameters stand: the recipe's own, and each model's."""
    own = [
        (("models", index, "parameters"), each.parameters or {})
        for index, each in enumerate(recipe.models)
    ]
    return [(("parameters",), recipe.parameters or {}), *own]


def missing_mistakes(recipe: RecipeContent, roles: Roles, entry: Entry) -> Iterator[Mistake]:
    """Parameters that are missing, for all models or for some; weights that are given twice."""
    for name, parameter in parameters_of(entry).items():
        every = [recipe.parameters or {}, *(each.parameters or {} for _, each in roles.members)]
        if parameter.required and name not in {
            python_name(key, entry) for parameters in every for key in parameters
        }:
            yield Mistake(("parameters",), f"{name} is missing, and {entry.name} needs it.")
    yield from _uneven_mistakes(recipe, roles, entry)
    yield from _weight_mistakes(recipe, roles)


def _uneven_mistakes(recipe: RecipeContent, roles: Roles, entry: Entry) -> Iterator[Mistake]:
    """Parameters that some models have and others would have to take from a default of none."""
    known = parameters_of(entry)
    everywhere = {python_name(name, entry) for name in recipe.parameters or {}}
    own = [
        {python_name(name, entry) for name in each.parameters or {}} for _, each in roles.members
    ]
    for name in dict.fromkeys(name for names in own for name in names if name is not None):
        without = known[name].required or known[name].default is None
        if not without or name in everywhere:
            continue
        for (place, _), names in zip(roles.members, own, strict=True):
            if name not in names:
                yield Mistake(place, f"has no {name}, and other models have one. Give all or none.")


def _weight_mistakes(recipe: RecipeContent, roles: Roles) -> Iterator[Mistake]:
    """Weights that are missing for some models or some tensors, or given twice."""
    own = [(each.parameters or {}).get(WEIGHT) for _, each in roles.members]
    common = (recipe.parameters or {}).get(WEIGHT)
    if recipe.weights is not None:
        yield from _listed_weight_mistakes(recipe, roles, [*own, common])
    elif common is None and any(weight is not None for weight in own):
        for (place, _), weight in zip(roles.members, own, strict=True):
            if weight is None:
                yield Mistake(place, "has no weight, and other models have one. Give all or none.")
            elif not covers(first_found([weight])):
                yield Mistake((*place, "parameters", WEIGHT), _NO_OTHERWISE)
    elif common is not None and not covers(first_found([common])):
        yield Mistake(("parameters", WEIGHT), _NO_OTHERWISE)


_NO_OTHERWISE = (
    "says nothing for tensors that no filter matches. End the list with {value: ...}, without "
    "filter."
)


def _listed_weight_mistakes(
    recipe: RecipeContent, roles: Roles, others: list[Any]
) -> Iterator[Mistake]:
    weights = recipe.weights or []
    if any(other is not None for other in others):
        yield Mistake(("weights",), "are given, and so is weight among the parameters. Give one.")
    if len(weights) != len(roles.members):
        beside = " besides the base" if len(roles.members) < len(recipe.models) else ""
        yield Mistake(
            ("weights",),
            f"{len(weights)} weights for {len(roles.members)} models{beside}. Give one per model.",
        )
    for index, weight in enumerate(weights):
        if text := number_mistake(weight):
            yield Mistake(("weights", index), text)


_SUBTRACT = "take task_arithmetic"


def weight_kind(recipe: RecipeContent, entry: Entry) -> str:
    """Whether the weights are "shares" or "factors"; for some methods a parameter says."""
    given = {
        name: value
        for key, value in (recipe.parameters or {}).items()
        if (name := python_name(key, entry)) and not isinstance(value, list | Mapping)
    }
    try:
        return str(entry.build(**given).weights)
    except (InvalidParameter, TypeError):
        return str(entry.contract["weights"])


def share_mistakes(recipe: RecipeContent, roles: Roles, entry: Entry) -> Iterator[Mistake]:
    """Shares are never negative, and not all zero."""
    if weight_kind(recipe, entry) != "shares":
        return
    placed: list[tuple[Place, Any]] = [
        (("weights", index), each) for index, each in enumerate(recipe.weights or ())
    ]
    for place, parameters in sections_of(recipe):
        placed += scalars(parameters.get(WEIGHT, []), (*place, WEIGHT))
    takes = "normalize" in entry.parameters
    otherwise = f"To subtract a model, {'set normalize: false' if takes else _SUBTRACT}."
    for place, each in placed:
        if not number_mistake(each) and each < 0:
            yield Mistake(
                place,
                f"is negative: {each}. {entry.name} mixes by shares, from 0 up. {otherwise}",
            )
    if placed and len(placed) >= len(roles.members) and all(each == 0 for _, each in placed):
        yield Mistake(placed[0][0], "all weights are zero. Give at least one model a weight.")
