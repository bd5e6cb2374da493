"""A method's parameters as recipes name them, and what each takes."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, Literal

from alloykit.checkpoints.wording import shown
from alloykit.errors import InvalidParameter, did_you_mean
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.strict_yaml import Place
from alloykit.recipes.values import NO, YES, number_mistake
from alloykit.registry import Entry

WEIGHT = "weight"
MOST_TRIED = 64

OURS = {"lambda": "scale"}
"""What recipes call a parameter -> what it is called in Python, where the two differ."""

WITHOUT_EFFECT = {"int8_mask": "chooses how mergekit keeps its masks; results do not depend on it"}
"""Parameters that mergekit's recipes hold and that change no result."""

ELSEWHERE = {"compat": "is a key of the recipe itself, not one of its parameters"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: What it is called in Python.
        kinds: Of "number", "integer", "truth" and "words".
        choices: The words that it takes; empty where any will do.
        per_member: Whether every model may have its own; the only model always may.
        default: Its default, or ``inspect.Parameter.empty``.
    """

    name: str
    kinds: frozenset[str]
    choices: tuple[str, ...]
    per_member: bool
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    def accepted(self, value: Any) -> Any:
        """The value as the method takes it: ``yes`` becomes true where a truth value belongs."""
        if self.kinds == {"truth"} and isinstance(value, str):
            return value.lower() in YES if value.lower() in YES | NO else value
        return value

    def mistake(self, value: Any) -> str:
        """Why a single value is of the wrong kind; "" where it is not."""
        value = self.accepted(value)
        if isinstance(value, bool):
            return "" if "truth" in self.kinds else self._expected(value)
        if isinstance(value, str):
            if "words" in self.kinds and (not self.choices or value in self.choices):
                return ""
            return self._expected(value)
        if "number" in self.kinds or ("integer" in self.kinds and isinstance(value, int)):
            return number_mistake(value)
        return self._expected(value)

    def _expected(self, value: Any) -> str:
        if "number" in self.kinds:
            return number_mistake(value)
        got = f"Got {shown(str(value).lower() if isinstance(value, bool) else repr(value))}."
        if self.choices:
            hint = did_you_mean(str(value), self.choices)
            return f"must be one of {', '.join(self.choices)}. {got}{hint}"
        what = {"truth": "true or false", "integer": "a whole number", "words": "text"}
        return f"must be {' or '.join(what[kind] for kind in sorted(self.kinds))}. {got}"


def parameters_of(entry: Entry) -> dict[str, Parameter]:
    """Python name -> parameter, of everything that a method takes but ``compat``."""
    hints = typing.get_type_hints(inspect.unwrap(entry.factory))
    many = entry.contract.get("per_member", frozenset())
    alone = entry.contract.get("members") == range(1, 2)
    return {
        name: Parameter(
            name, *_kinds(hints.get(name, Any)), name in many or alone, parameter.default
        )
        for name, parameter in entry.parameters.items()
        if name not in ELSEWHERE
    }


def names_in_recipes(entry: Entry) -> list[str]:
    """What recipes may call the parameters of a method, the weight among them."""
    theirs = {ours: name for name, ours in OURS.items()}
    return sorted([WEIGHT, *(theirs.get(name, name) for name in parameters_of(entry))])


def python_name(name: str, entry: Entry) -> str | None:
    """What a parameter of a recipe is called in Python; None where the method has none such.

    The method's own name in front may be left out or put there: ``nuslerp_flatten``.
    """
    known = parameters_of(entry)
    for candidate in (name, OURS.get(name, name), name.removeprefix(f"{entry.name}_")):
        if candidate in known:
            return candidate
    return None


def unknown(name: str, entry: Entry) -> str:
    """What to say of a parameter that a method does not have."""
    known = names_in_recipes(entry)
    hint = did_you_mean(name, known)
    return f"{entry.name} has no parameter {shown(name)!r}.{hint} It takes: {', '.join(known)}."


Given = dict[str, list[tuple[Place, Any]]]
"""Python name -> every single value that a recipe gives it, each with its place."""


def range_mistakes(entry: Entry, given: Given, compat: str | None) -> Iterator[Mistake]:
    """Values that the method refuses, whatever the other parameters are."""
    distinct = {name: _extremes([value for _, value in values]) for name, values in given.items()}
    for name, values in given.items():
        others = {other: each for other, each in distinct.items() if other != name}
        said = {v: _always_refused(entry, name, v, others, compat) for v in distinct[name]}
        for place, value in values:
            if text := said.get(value, ""):
                yield Mistake(place, text)


def _extremes(values: list[Any]) -> list[Any]:
    """The different values; of very many, the least and the greatest, as ranges are intervals."""
    found = list(dict.fromkeys(values))
    if len(found) <= MOST_TRIED or any(isinstance(value, str) for value in found):
        return found[:MOST_TRIED]
    return [min(found), max(found)]


def _always_refused(
    entry: Entry, name: str, value: Any, others: dict[str, list[Any]], compat: str | None
) -> str:
    said = ""
    combinations = product(*others.values())
    for context in islice(combinations, MOST_TRIED):
        refused = _refused(entry, {**dict(zip(others, context, strict=True)), name: value}, compat)
        if not refused:
            return ""
        said = said or refused
    # With more combinations than were tried, the engine has the last word, tensor by tensor.
    return "" if next(combinations, None) is not None else said


def _refused(entry: Entry, parameters: dict[str, Any], compat: str | None) -> str:
    """Why a method cannot be built with these parameters; "" where it can."""
    extra = {"compat": compat} if compat and "compat" in entry.parameters else {}
    try:
        entry.build(**parameters, **extra)
    except InvalidParameter as error:
        return " ".join(str(error).split())
    except TypeError:
        return ""  # A parameter without default is missing, which is said elsewhere.
    return ""


def _kinds(annotation: Any) -> tuple[frozenset[str], tuple[str, ...]]:
    names = {float: "number", int: "integer", bool: "truth", str: "words"}
    kinds: set[str] = set()
    choices: list[str] = []
    for each in _alternatives(annotation):
        if typing.get_origin(each) is Literal:
            words = [word for word in typing.get_args(each) if isinstance(word, str)]
            choices += words
            kinds |= {"words"} if words else set()
        elif each in names:
            kinds.add(names[each])
    return frozenset(kinds or names.values()), tuple(choices)


def _alternatives(annotation: Any) -> Sequence[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
