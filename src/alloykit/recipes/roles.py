"""Who is who in a recipe: the members, in the order that their method wants, and the base."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alloykit.checkpoints.wording import counted, shown
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.schema import ModelEntry, RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.registry import Entry


@dataclass(frozen=True)
class Roles:
    """The models of a recipe by what they are to the method.

    Attributes:
        members: Place and entry of each model that is merged.
        base: Path of the base, where the method takes one.
        mistakes: What is wrong with this.
        notes: What is done otherwise than the recipe seems to say.
    """

    members: tuple[tuple[Place, ModelEntry], ...]
    base: str | None
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()


def roles_of(recipe: RecipeContent, entry: Entry) -> Roles:
    """The members and the base, as mergekit's recipes mean them.

    Methods with a base take ``base_model``, and leave it out of the members where it is also
    listed there. Methods that go from one model to another, such as slerp, take it as the first
    of the two. Others take no base: there it may only repeat one of the models.
    """
    every: list[tuple[Place, ModelEntry]] = [
        (("models", index), each) for index, each in enumerate(recipe.models)
    ]
    if recipe.base_model is None:
        roles = Roles(tuple(every), None)
    elif "base" in entry.contract["needs"] | entry.contract["optional"]:
        roles = _beside_the_base(recipe.base_model, every)
    else:
        roles = _among_the_members(recipe.base_model, every, entry)
    mistakes = (*roles.mistakes, *_twice(every), *_count(roles, entry), *_no_base(roles, entry))
    return Roles(roles.members, roles.base, mistakes, roles.notes)


def _beside_the_base(base: str, every: list[tuple[Place, ModelEntry]]) -> Roles:
    members = [(place, each) for place, each in every if not _same(each.model, base)]
    notes = [
        f"{shown(each.model)} is the base: its own parameters ({', '.join(map(shown, given))}) "
        "have no effect, as in mergekit."
        for _, each in every
        if _same(each.model, base) and (given := each.parameters)
    ]
    return Roles(tuple(members), base, (), tuple(notes))


def _among_the_members(base: str, every: list[tuple[Place, ModelEntry]], entry: Entry) -> Roles:
    first = [pair for pair in every if _same(pair[1].model, base)]
    if entry.contract["ordered"] and entry.contract["members"] == range(2, 3):
        rest = [pair for pair in every if pair not in first]
        start = first or [(("base_model",), ModelEntry(model=base))]
        return Roles((*start, *rest), None)
    if first:
        return Roles(tuple(every), None)
    text = (
        f"{entry.name} takes no base. Leave it out; or list it among the models, if it is to be "
        "merged like them (mergekit does that without saying so)."
    )
    return Roles(tuple(every), None, (Mistake(("base_model",), text),))


def _twice(every: list[tuple[Place, ModelEntry]]) -> Iterator[Mistake]:
    for index, (place, each) in enumerate(every):
        if any(_same(each.model, other.model) for _, other in every[:index]):
            yield Mistake(
                (*place, "model"),
                f"{shown(each.model)} is there twice. Give each model once; its weight says how "
                "much it counts.",
            )
        if (each.name is None) != (every[0][1].name is None):
            yield Mistake(
                place, "some models have a name and others none. Name all of them or none."
            )
        if each.name and each.name in [other.name for _, other in every[:index]]:
            yield Mistake((*place, "name"), f"another model is named {shown(each.name)!r} too.")


def _count(roles: Roles, entry: Entry) -> Iterator[Mistake]:
    takes, count = entry.contract["members"], len(roles.members)
    least, most = takes.start, takes.stop - 1
    if least <= count <= most or roles.mistakes:
        return
    wanted = f"exactly {least}" if least == most else f"at least {least}"
    besides = " besides the base" if roles.base else ""
    models = "model" if least == 1 else "models"
    was = "is" if count == 1 else "are"
    yield Mistake(
        ("models",), f"{entry.name} takes {wanted} {models}{besides}; {count} {was} listed."
    )


def _no_base(roles: Roles, entry: Entry) -> Iterator[Mistake]:
    if "base" in entry.contract["needs"] and roles.base is None:
        yield Mistake(
            (),
            f"{entry.name} needs a base. Name the checkpoint that the "
            f"{counted(len(roles.members), 'model')} {'was' if len(roles.members) == 1 else 'were'}"
            " fine-tuned from as base_model.",
        )


def _same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(path: str) -> str:
    try:
        return os.path.normpath(Path(path).expanduser())
    except (ValueError, RuntimeError):
        return path
