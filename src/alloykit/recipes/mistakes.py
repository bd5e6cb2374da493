"""What is wrong with a recipe: every mistake with its line and its key, in one error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import InvalidRecipe, listing
from alloykit.recipes.strict_yaml import Place

GO_ON = "All keys: alloykit merge --schema. All methods: alloykit methods."


class Mistake(NamedTuple):
    """One thing that is wrong.

    Attributes:
        place: Keys and indices that lead to it.
        text: What is wrong, and how to go on.
    """

    place: Place
    text: str


def spelt(place: Place) -> str:
    """A place as people write it.

    Example:
        >>> spelt(("models", 1, "parameters", "density"))
        'models[1].parameters.density'
    """
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{shown(key)}" for key in place)
    return path.removeprefix(".")


def invalid_recipe(
    where: str, mistakes: Iterable[Mistake], lines: Mapping[Place, int]
) -> InvalidRecipe:
    """One error that lists the mistakes in the order of their lines.

    Args:
        where: What the recipe is called, such as its path.
        mistakes: One or more.
        lines: Place -> line; empty for recipes that were never a file.
    """
    said = said_in_order(mistakes, lines)
    count = counted(len(said), "mistake")
    return InvalidRecipe(f"{shown(where)} has {count}:\n{listing(said)}\n{GO_ON}")


def said_in_order(mistakes: Iterable[Mistake], lines: Mapping[Place, int]) -> list[str]:
    """Each mistake with its line and its place, in the order of the lines.

    Example:
        >>> said_in_order([Mistake(("seed",), "is empty.")], {("seed",): 3})
        ['line 3: seed: is empty.']
    """
    found = sorted({m: _line(m.place, lines) for m in mistakes}.items(), key=lambda pair: pair[1])
    return [
        ": ".join(
            filter(None, [f"line {line}" if line else "", spelt(mistake.place), mistake.text])
        )
        for mistake, line in found
    ]


def _line(place: Place, lines: Mapping[Place, int]) -> int:
    """The line of a place, or of the nearest thing around it; 0 where there is none."""
    for length in range(len(place), -1, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return 0
