"""JSON from strangers: duplicate keys, NaN, deep nesting and bad UTF-8 are refused."""

from __future__ import annotations

import json
from collections import Counter
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
