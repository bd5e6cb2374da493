"""Parameter values as recipes write them: a number, a list over the layers, or filters by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alloykit.checkpoints.wording import shown
from alloykit.errors import did_you_mean
from alloykit.execution.schedules import ByName, Gradient
from alloykit.recipes.mistakes import Mistake
from alloykit.recipes.strict_yaml import Place

EVERYTHING = "*"
RULE_KEYS = ("filter", "value")
YES, NO = frozenset({"yes", "on"}), frozenset({"no", "off"})
_GLOB = re.compile(r"[*?\[]")
_HINTS = (
    (r"(?i)(yes|no|on|off|y|n|true|false)", "That is a word or a truth value."),
    (r"[-+]?0[0-9]+", "A leading zero makes it octal for some readers of YAML; leave it out."),
    (r"[-+]?[0-9_]*_[0-9_]*", "Write it without underscores."),
    (r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?", "Older readers of YAML take that for base 60."),
    (r"[-+]?[0-9]+,[0-9]+", "Write a point in place of the comma."),
    (r"[-+]?[0-9.]+ ?%", "Write it as a fraction: 50 % is 0.5."),
    (r"[-+]?0[xXoObB].*", "Write it as a decimal number."),
    (r"(?i)[-+.]*(nan|inf|infinity)", "It must be finite."),
    (r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", "Take the quotes away."),
)  # fmt: skip


def shape_mistakes(value: Any, place: Place) -> Iterator[Mistake]:
    """What keeps a value from being a number, word or truth value, a list of them, or filters."""
    if value is None:
        yield Mistake(place, "is empty. Give a value, or leave the key out.")
    elif isinstance(value, Mapping):
        yield from _rule_mistakes(value, place)
    elif isinstance(value, list):
        yield from _list_mistakes(value, place)


def _list_mistakes(items: list[Any], place: Place) -> Iterator[Mistake]:
    rules = [isinstance(item, Mapping) for item in items]
    if not items:
        yield Mistake(place, "is an empty list. A list holds the values over the layers.")
    elif any(rules) and not all(rules):
        yield Mistake(
            place, "mixes values and filters. Write every entry as {filter: ..., value: ...}."
        )
    elif all(rules):
        for index, rule in enumerate(items):
            yield from _rule_mistakes(rule, (*place, index))
            if index < len(items) - 1 and rule.get("filter") in (None, EVERYTHING):
                yield Mistake(
                    (*place, index + 1),
                    "is never reached: the entry before it is for every tensor, and the first "
                    "that matches counts.",
                )
                return
    else:
        for index, item in enumerate(items):
            if item is None or isinstance(item, list):
                yield Mistake((*place, index), f"must be a single value. Got {shown(item)}.")
        if len({_sort(item) for item in items}) > 1:
            yield Mistake(place, "mixes numbers, words and truth values. A list is of one kind.")


def _rule_mistakes(rule: Mapping[str, Any], place: Place) -> Iterator[Mistake]:
    for key in rule:
        if key not in RULE_KEYS:
            hint = did_you_mean(key, RULE_KEYS)
            yield Mistake(
                (*place, key), f"there is no such key.{hint} A rule has filter and value."
            )
    if "value" not in rule:
        yield Mistake(place, "has no value. A rule is {filter: part of a name, value: ...}.")
    elif isinstance(rule["value"], Mapping) or any(
        isinstance(item, Mapping) for item in _items(rule["value"])
    ):
        yield Mistake((*place, "value"), "holds filters itself. Filters are one list, not nested.")
    else:
        yield from shape_mistakes(rule["value"], (*place, "value"))
    given = rule.get("filter")
    if given is not None and (not isinstance(given, str) or not given):
        yield Mistake((*place, "filter"), f"must be part of a tensor's name. Got {shown(given)}.")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _sort(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, int | float) else "word"


def scalars(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """The single values in a value, each with its place."""
    if isinstance(value, Mapping):
        yield from scalars(value["value"], (*place, "value"))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from scalars(item, (*place, index))
    else:
        yield place, value


def number_mistake(value: Any) -> str:
    """Why a value is no finite number; "" where it is one.

    Example:
        >>> number_mistake("50%")
        "must be a number. Got '50%'. Write it as a fraction: 50 % is 0.5."
    """
    if isinstance(value, bool):
        return f"must be a number. Got {str(value).lower()}."
    if isinstance(value, int | float):
        return "" if math.isfinite(value) else f"must be a finite number. Got {value}."
    hint = next((hint for form, hint in _HINTS if re.fullmatch(form, str(value))), "")
    return f"must be a number. Got {shown(str(value))!r}. {hint}".rstrip()


def schedule(value: Any) -> Any:
    """What the engine takes for a value: a scalar, a ``Gradient`` or ``ByName``.

    A filter is part of the tensor's name, as in mergekit; with ``*``, ``?`` or ``[`` in it, it is
    a glob over the whole name.

    Example:
        >>> schedule([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}])
        ByName(rules=(('*mlp*', Gradient(values=(0, 1))), ('*', 0.5)))
    """
    if isinstance(value, Mapping):
        return ByName([(_glob(value.get("filter")), schedule(value["value"]))])
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return ByName([rule for each in value for rule in schedule(each).rules])
    return Gradient(value) if isinstance(value, list) else value


def written(value: Any) -> Any:
    """A scalar or schedule as a recipe writes it: what ``schedule`` makes the same again from.

    Example:
        >>> written(ByName({"*mlp*": Gradient([0, 1]), "*": 0.5}))
        [{'filter': '*mlp*', 'value': [0, 1]}, {'value': 0.5}]
    """
    if isinstance(value, Mapping):
        value = ByName(value)
    if isinstance(value, Gradient):
        return list(value.values)
    if not isinstance(value, ByName):
        return value
    return [
        {"value": written(each)}
        if glob == EVERYTHING
        else {"filter": _as_filter(glob), "value": written(each)}
        for glob, each in value.rules
        if each is not None
    ]


NOTHING = object()


def first_found(levels: Sequence[Any], default: Any = NOTHING) -> Any:
    """The value that holds where several levels give one: filters fall through to the next level.

    Args:
        levels: Values as written, the most particular first; None where a level gives none.
        default: What holds where no filter of any level matches.
    """
    rules: list[tuple[str, Any]] = []
    for level in levels:
        if level is None:
            continue
        found = schedule(level)
        if not isinstance(found, ByName):
            return ByName([*rules, (EVERYTHING, found)]) if rules else found
        rules += found.rules
        if rules[-1][0] == EVERYTHING:
            return ByName(rules)
    if not rules:
        return None
    return ByName(rules if default is NOTHING else [*rules, (EVERYTHING, default)])


def covers(value: Any) -> bool:
    """Whether a schedule has a value for every tensor, whatever its name."""
    return not isinstance(value, ByName) or value.rules[-1][0] == EVERYTHING


def _glob(part: str | None) -> str:
    if part is None or part == EVERYTHING:
        return EVERYTHING
    return part if _GLOB.search(part) else f"*{part}*"


def _as_filter(glob: str) -> str:
    """A glob that ``_glob`` leaves alone; one without wildcards would be read as part of a name."""
    if _GLOB.search(glob):
        return glob
    at = next((index for index, letter in enumerate(glob) if letter.isalnum()), 0)
    return f"{glob[:at]}[{glob[at]}]{glob[at + 1 :]}"
