"""A recipe: a merge written down, and what it comes to as arguments of ``alloykit.merge``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import PrivateAttr

from alloykit.recipes.checking import recipe_mistakes
from alloykit.recipes.conversion import conversion_notes, merge_arguments, recipe_content
from alloykit.recipes.mistakes import invalid_recipe
from alloykit.recipes.schema import RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.registry import merge_methods

WIDE = 10_000


class Recipe(RecipeContent):
    """A merge, written down: the method, the models, their base, the parameters.

    Use it to keep how a model was made beside the model, or to run recipes that were written for
    mergekit. ``read_recipe`` reads one from a file; ``alloykit.merge(**recipe.arguments())`` runs
    it.

    Example:
        >>> recipe = Recipe.of({"models": ["a.safetensors", "b.safetensors"], "weights": [3, 1]})
        >>> print(recipe.to_yaml())
        merge_method: linear
        models:
        - model: a.safetensors
          parameters:
            weight: 3
        - model: b.safetensors
          parameters:
            weight: 1
        <BLANKLINE>
    """

    _folder: Path = PrivateAttr(default_factory=Path)
    _where: str = PrivateAttr(default="The recipe")
    _lines: dict[Place, int] = PrivateAttr(default_factory=dict)

    def located(self, path: Path, lines: Mapping[Place, int] | None = None) -> Recipe:
        """The same recipe as read from a file: its relative paths start at the file's folder.

        Args:
            path: The file.
            lines: Place of each key -> its line, for messages.
        """
        copy = self.model_copy()
        copy._folder, copy._where, copy._lines = path.parent, str(path), dict(lines or {})
        return copy

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``alloykit.merge``, with schedules for what differs by tensor.

        Raises:
            InvalidRecipe: The recipe has mistakes; all are listed.
            CheckpointError: Models that are not there; all are listed.
        """
        mistakes = recipe_mistakes(self)
        if mistakes:
            raise invalid_recipe(self._where, mistakes, self._lines)
        return merge_arguments(self, self._folder, self._where, self._lines)

    def notes(self) -> list[str]:
        """What the recipe says that changes nothing, and why."""
        return conversion_notes(self)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Recipe:
        """The recipe of a call of ``alloykit.merge``; how the merge is run is left out.

        Args:
            arguments: Its keyword arguments, with models as paths.

        Raises:
            InvalidRecipe: Models that are not paths.
        """
        return cls.model_validate(recipe_content(arguments))

    def to_yaml(self) -> str:
        """The recipe as YAML, which ``read_recipe`` reads."""
        content = self.model_dump(exclude_none=True)
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=WIDE, allow_unicode=True)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["merge_method"]["enum"] = merge_methods.names()
    return schema


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(list, _list)
