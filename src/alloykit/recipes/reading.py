"""Recipes from YAML files: read strictly, with everything that is wrong said at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from alloykit.recipes.checking import recipe_mistakes
from alloykit.recipes.keys import closest, known_keys, refused_keys, said_of
from alloykit.recipes.mistakes import Mistake, invalid_recipe
from alloykit.recipes.recipe import Recipe
from alloykit.recipes.strict_yaml import Place, read_yaml


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe in the form that mergekit's users write.

    Models are looked for when ``arguments()`` is called, not here. Relative paths start at the
    recipe's folder (in mergekit: at the working folder).

    Args:
        path: A YAML file.

    Raises:
        InvalidRecipe: The file cannot be read, is not YAML, or has mistakes; every one is listed
            with its line, its key and the nearest known key.

    Example:
        >>> import tempfile
        >>> text = "{merge_method: linear, models: [{model: a.safetensors}, {model: b.pt}]}"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mean.yaml")
        ...     _ = path.write_text(text)
        ...     read_recipe(path).models[1].model
        'b.pt'

    References:
        The configuration language of mergekit 0.1.5. Differs from it in that nothing is ignored:
        unknown keys, and keys that are not done yet (slices, modules, tokenizer, chat_template),
        are errors.
    """
    path = Path(path).expanduser()
    document = read_yaml(path)
    if not isinstance(document.content, Mapping):
        what = "is empty" if document.content is None else "is not a mapping of keys"
        text = f"{what}. A recipe begins with merge_method and models."
        raise invalid_recipe(str(path), [Mistake((), text)], {})
    mistakes = list(refused_keys(document.content))
    try:
        recipe = Recipe.model_validate(document.content)
    except pydantic.ValidationError as error:
        mistakes += [m for each in error.errors() if (m := said_of(each)) is not None]
        mistakes += _further(document.content, error.errors())
        raise invalid_recipe(str(path), mistakes, document.lines) from None
    mistakes += recipe_mistakes(recipe)
    if mistakes:
        raise invalid_recipe(str(path), mistakes, document.lines)
    return recipe.located(path, document.lines)


def _further(content: Mapping[str, Any], errors: Sequence[ErrorDetails]) -> Iterator[Mistake]:
    """What else is wrong, judged with misspelt keys as they were probably meant.

    Nothing is said where a key that other mistakes could come from is missing or of a wrong type.
    """
    mended: Any = _unshared(content)
    meant: dict[Place, Place] = {}
    for error in errors:
        place = tuple(error["loc"])
        if error["type"] == "missing" or place[0] == "weights" or place[-1] in _CENTRAL:
            return
        if isinstance(place[-1], int):
            return
        section = mended
        for key in place[:-1]:
            section = section[key]
        value = section.pop(place[-1])
        key = closest(str(place[-1]), known_keys(place))
        if error["type"] == "extra_forbidden" and key and key not in section:
            section[key] = value
            meant[(*place[:-1], key)] = place
    try:
        recipe = Recipe.model_validate(mended)
    except pydantic.ValidationError:
        return
    for mistake in recipe_mistakes(recipe):
        for right, typed in meant.items():
            if mistake.place[: len(right)] == right:
                mistake = Mistake((*typed, *mistake.place[len(right) :]), mistake.text)
        yield mistake


_CENTRAL = ("models", "model", "base_model", "merge_method")


def _unshared(value: Any) -> Any:
    """A copy in which what YAML aliases share is separate."""
    if isinstance(value, Mapping):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value
