"""Keys of a recipe that are not there, not known, not done yet, or of the wrong type."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from alloykit.checkpoints.wording import shown
from alloykit.errors import did_you_mean
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.schema import DTYPES, ModelEntry, RecipeContent
from alloykit.recipes.strict_yaml import Place
from alloykit.recipes.values import number_mistake

_TOKENIZERS = (
    "tokenizers are not merged yet. Leave it out, and copy the base's tokenizer files beside the "
    "result; the models must share one vocabulary."
)
LATER = {
    "slices": "merging layer by layer is not done yet. If every slice takes all layers of its "
    "models, write them under models instead.",
    "modules": "merging the parts of a model by different rules is not done yet. Leave it out, "
    "and say what differs with filters.",
    "tokenizer": _TOKENIZERS,
    "tokenizer_source": _TOKENIZERS,
    "chat_template": "chat templates are not written yet. Leave it out, and copy the template of "
    "the model that you want it from.",
    "name": "names one of several merges in a file of mergekit-multi. Leave it out: a recipe is "
    "one merge.",
    "experts": "belongs to mergekit-moe, which builds a mixture of experts. That is not a merge "
    "of tensors, and not done here.",
    "gate_mode": "belongs to mergekit-moe. Mixtures of experts are not built here.",
    "layer_range": "taking some of a model's layers is not done yet. Leave it out where it is all "
    "of them.",
}
"""Keys of mergekit's recipes that are refused by name -> why, and how to go on."""


def refused_keys(content: Mapping[str, Any]) -> Iterator[Mistake]:
    """Keys that mergekit has and that are not done here, each with the reason."""
    models = content.get("models")
    entries = models if isinstance(models, list) else []
    sections: list[tuple[Place, Any]] = [((), content)]
    sections += [(("models", index), each) for index, each in enumerate(entries)]
    for place, section in sections:
        for key in section if isinstance(section, Mapping) else ():
            if key in LATER and not (key == "name" and place):
                yield Mistake((*place, key), LATER[key])


def known_keys(place: Place) -> list[str]:
    """The keys that may stand beside the one at a place."""
    return list((ModelEntry if place[0] == "models" else RecipeContent).model_fields)


def closest(given: str, known: Sequence[str]) -> str:
    """The known key that a misspelt one was probably meant for; "" where none is close."""
    return next(iter(difflib.get_close_matches(given, known, n=1)), "")


def said_of(error: ErrorDetails) -> Mistake | None:
    """One of pydantic's mistakes in our words; None where it is said elsewhere."""
    place = tuple(error["loc"])
    key, given = str(place[-1]) if place else "", error["input"]
    if error["type"] == "extra_forbidden":
        if key in LATER and not (key == "name" and len(place) > 1):
            return None
        return Mistake(place, f"there is no such key.{did_you_mean(key, known_keys(place))}")
    if error["type"] == "missing":
        return _missing(place, given)
    return Mistake(place, _TYPES.get(error["type"], _otherwise)(key, given, error))


def _missing(place: Place, given: Any) -> Mistake | None:
    if place == ("models",) and isinstance(given, Mapping) and {"slices", "modules"} & set(given):
        return None
    what = {
        "merge_method": "Name one of alloykit methods, such as linear or ties.",
        "models": "List the models to merge: - model: PATH.",
        "model": "Name the checkpoint: model: PATH.",
    }
    return Mistake(place, f"is missing. {what.get(str(place[-1]), '')}".rstrip())


def _text(key: str, given: Any, error: ErrorDetails) -> str:
    if isinstance(given, Mapping):
        return "must be text, not a mapping. Write the path alone."
    if given is None:
        return "is empty. Give a value, or leave the key out."
    return f"must be text. Got {shown(given)}. Put it in quotes if that is its name."


def _list(key: str, given: Any, error: ErrorDetails) -> str:
    if key == "models":
        return f"must be a list: - model: PATH, one line each. Got {shown(given)}."
    return f"must be a list. Got {shown(given)}."


def _mapping(key: str, given: Any, error: ErrorDetails) -> str:
    if isinstance(given, str):
        return f"must be a mapping. Got {shown(given)!r}. Write model: {shown(given)}."
    return f"must be a mapping of keys. Got {shown(given)}."


def _whole(key: str, given: Any, error: ErrorDetails) -> str:
    return f"must be a whole number from 0 up. Got {shown(given)}."


def _choice(key: str, given: Any, error: ErrorDetails) -> str:
    choices = DTYPES if key.endswith("dtype") else ("mergekit",)
    hint = did_you_mean(str(given), choices)
    return f"must be {' or '.join(choices)}. Got {shown(given)}.{hint}"


def _number(key: str, given: Any, error: ErrorDetails) -> str:
    return number_mistake(given)


def _short(key: str, given: Any, error: ErrorDetails) -> str:
    return "is empty. Name a file."


def _otherwise(key: str, given: Any, error: ErrorDetails) -> str:
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}. Got {shown(given)}."


_TYPES = {
    "string_type": _text,
    "list_type": _list,
    "dict_type": _mapping,
    "model_type": _mapping,
    "model_attributes_type": _mapping,
    "int_type": _whole,
    "int_from_float": _whole,
    "greater_than_equal": _whole,
    "literal_error": _choice,
    "float_type": _number,
    "string_too_short": _short,
}
