"""Everything that is wrong with a recipe, found from the recipe and the registry alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alloykit.checkpoints.wording import shown
from alloykit.errors import UnknownName, did_you_mean
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.parameters import (
    ELSEWHERE,
    WEIGHT,
    WITHOUT_EFFECT,
    Given,
    parameters_of,
    python_name,
    range_mistakes,
    unknown,
)
from alloykit.recipes.per_model import missing_mistakes, sections_of, share_mistakes
from alloykit.recipes.roles import Roles, roles_of
from alloykit.recipes.schema import RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.recipes.values import (
    number_mistake,
    scalars,
    shape_mistakes,
)
from alloykit.registry import Entry, merge_methods


def recipe_mistakes(recipe: RecipeContent) -> list[Mistake]:
    """Every mistake of a recipe; an empty list where there is none."""
    try:
        entry = merge_methods.entry(recipe.merge_method)
    except UnknownName:
        known = merge_methods.names()
        hint = did_you_mean(recipe.merge_method.replace("-", "_"), known)
        text = f"there is no merge method {shown(recipe.merge_method)!r}.{hint}"
        return [Mistake(("merge_method",), text)]
    roles = roles_of(recipe, entry)
    wrong = [
        mistake
        for place, parameters in sections_of(recipe)
        for name, value in parameters.items()
        for mistake in _parameter_mistakes(name, value, place, entry)
    ]
    mistakes = [*roles.mistakes, *wrong]
    rest = _without(recipe, {mistake.place[: _DEPTH[str(mistake.place[0])]] for mistake in wrong})
    mistakes += _value_mistakes(rest, entry)
    mistakes += share_mistakes(rest, roles_of(rest, entry), entry)
    mistakes += _stats_mistakes(roles, entry)
    if not wrong:
        # What seems to be missing may be what is misspelt.
        mistakes += missing_mistakes(recipe, roles, entry)
    return mistakes


_DEPTH = {"parameters": 2, "models": 4}
"""How many keys lead to one parameter of the recipe, and of a model."""


def _without(recipe: RecipeContent, places: set[Place]) -> RecipeContent:
    """The recipe without the parameters that are wrong, so that the others can be judged."""

    def kept(place: Place, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
        return {k: v for k, v in (parameters or {}).items() if (*place, k) not in places}

    models = [
        each.model_copy(update={"parameters": kept(("models", i, "parameters"), each.parameters)})
        for i, each in enumerate(recipe.models)
    ]
    parameters = kept(("parameters",), recipe.parameters)
    return recipe.model_copy(update={"parameters": parameters, "models": models})


def _parameter_mistakes(name: str, value: Any, place: Place, entry: Entry) -> Iterator[Mistake]:
    yield from _name_mistakes(name, place, entry)
    yield from shape_mistakes(value, (*place, name))


def _name_mistakes(name: str, place: Place, entry: Entry) -> Iterator[Mistake]:
    here = (*place, name)
    known = parameters_of(entry)
    python = python_name(name, entry)
    if name in ELSEWHERE:
        yield Mistake(here, f"{ELSEWHERE[name]}.")
    elif name == WEIGHT or name in WITHOUT_EFFECT:
        return
    elif python is None:
        yield Mistake(here, unknown(name, entry))
    elif place[0] == "models" and not known[python].per_member:
        yield Mistake(
            here,
            "holds for the whole merge, not for one model. Move it to the recipe's own parameters.",
        )


def _value_mistakes(recipe: RecipeContent, entry: Entry) -> Iterator[Mistake]:
    """Single values of the wrong kind, or outside what the method takes."""
    known = parameters_of(entry)
    given: Given = {}
    for place, parameters in sections_of(recipe):
        first: dict[str, str] = {}
        for name, value in parameters.items():
            python = python_name(name, entry) or name
            if python in first:
                text = f"{first[python]} and {name} are one parameter. Give it once."
                yield Mistake((*place, name), text)
            first.setdefault(python, name)
            parameter = known.get(python)
            for at, scalar in scalars(value, (*place, name)):
                text = number_mistake(scalar) if name == WEIGHT else ""
                text = text or (parameter.mistake(scalar) if parameter else "")
                if text:
                    yield Mistake(at, text)
                elif parameter:
                    given.setdefault(python, []).append((at, parameter.accepted(scalar)))
    yield from range_mistakes(entry, given, recipe.compat)


def _stats_mistakes(roles: Roles, entry: Entry) -> Iterator[Mistake]:
    kinds = {"fisher", "gram"} & (entry.contract["needs"] | entry.contract["optional"])
    for place, each in roles.members:
        given = each.stats or {}
        for kind in given:
            if kind not in kinds:
                takes = f"It takes {', '.join(sorted(kinds))}" if kinds else "It takes none"
                yield Mistake(
                    (*place, "stats", kind),
                    f"{entry.name} has no use for such statistics."
                    f"{did_you_mean(kind, sorted(kinds))} {takes}.",
                )
        for kind in sorted(kinds & entry.contract["needs"] - set(given)):
            yield Mistake(
                place,
                f"has no {kind} statistics, which {entry.name} needs. Make them with alloykit "
                f"stats, and name the file: stats: {{{kind}: FILE}}.",
            )
