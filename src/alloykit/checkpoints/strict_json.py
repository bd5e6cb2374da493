"""JSON from strangers: duplicate keys, NaN, deep nesting and bad UTF-8 are refused; differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from alloykit.checkpoints.wording import shown


def parse(data: bytes) -> Any:
    """The value that ``data`` spells.

    Raises:
        ValueError: It is not one strict JSON value; the text says why.

    Example:
        >>> parse(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        ValueError: the key a is there twice
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None


def encodable(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8 (a lone surrogate cannot)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], absent: Any = None
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """The path of every value that differs between two nested mappings, and the two values.

    Args:
        one: The first.
        other: The second.
        absent: Stands for what is in one of them alone.

    Example:
        >>> list(differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}))
        [(('a', 'c'), 2, None)]
    """
    for key in dict.fromkeys((*one, *other)):
        first, second = one.get(key, absent), other.get(key, absent)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            for path, *values in differing(first, second, absent):
                yield (key, *path), values[0], values[1]
        elif first != second:
            yield (key,), first, second


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
