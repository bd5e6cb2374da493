"""YAML without surprises: plain data and the line of every value, or one clear error.

What YAML allows and a recipe has no use for is refused: tags, merge keys, several documents, keys
that are given twice or are not text, aliases that unfold without end. Plain words become numbers
as in YAML 1.2: ``1e-5`` is a number; ``yes``, ``010``, ``1_000`` and ``1:30``, which readers of
YAML take for different things, stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from alloykit.checkpoints.wording import amount, shown
from alloykit.errors import InvalidRecipe

MOST_BYTES = 1 << 20
MOST_VALUES = 50_000
DEEPEST = 20
LONGEST_NUMBER = 40

Place = tuple[str | int, ...]
"""Where a value stands: keys and indices from the root."""

# The parser in C, where PyYAML has it, is a hundred times faster; both read the same language.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"": None, "~": None} | {
    form: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for form in (word, word.title(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """One YAML document.

    Attributes:
        content: Mappings, lists, text, numbers, true, false and None.
        lines: Place -> line, from 1, of every value and of every key's value.
    """

    content: Any
    lines: dict[Place, int]


def read_yaml(path: Path) -> Document:
    """Read one YAML file of at most 1 MiB.

    Raises:
        InvalidRecipe: The file cannot be read, is not YAML, or uses what is refused here.
    """
    reader = _Reader(shown(str(path)), iter(()))
    text = _text_of(path)
    try:
        # Events come one by one, so that a file built to be large stops the parser early.
        reader.events = iter(yaml.parse(text, _Loader))
        return Document(reader.document(), reader.lines)
    except yaml.MarkedYAMLError as error:
        raise InvalidRecipe(_explained(reader.file, text, error)) from None
    except yaml.YAMLError as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRecipe(f"{reader.file} is not YAML: {reason}.") from None


def _text_of(path: Path) -> str:
    name = shown(str(path))
    try:
        if path.is_dir():
            raise InvalidRecipe(f"{name} is a folder. Name the recipe's YAML file in it.")
        if not path.exists():
            raise InvalidRecipe(f"There is no recipe {name}.")
        if not path.is_file():
            raise InvalidRecipe(f"{name} is not a regular file. Save the recipe as one.")
        if path.stat().st_size > MOST_BYTES:
            raise InvalidRecipe(
                f"{name} has {amount(path.stat().st_size)}; a recipe has at most "
                f"{amount(MOST_BYTES)}. Is it a checkpoint?"
            )
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidRecipe):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InvalidRecipe(f"{name} cannot be read: {reason}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidRecipe(
            f"{name} is not UTF-8 text: byte {error.start}, in line {line}. "
            "Save it as UTF-8; a checkpoint is no recipe."
        ) from None


def _explained(file: str, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else file
    problem = error.problem or error.context or "it does not follow YAML's grammar"
    hint = ""
    if mark is not None and text[: mark.index + 1].endswith("\t"):
        hint = " Indent with spaces; YAML does not allow tabs there."
    elif "undefined alias" in problem:
        hint = " An alias (*name) repeats what an anchor (&name) above it marks."
    return f"{where}: this is not YAML: {problem}.{hint}"


@dataclass
class _Reader:
    """Turns the parser's events into data."""

    file: str
    events: Iterator[Any]
    lines: dict[Place, int] = field(default_factory=dict)
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    values: int = 0

    def document(self) -> Any:
        """The content of the only document; None where there is none."""
        content: Any = None
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refusal(
                        event, "a second document begins. A recipe is one: split the file at '---'"
                    )
                content = self._value(next(self.events), (), 0)
        return content

    def _value(self, event: Any, place: Place, depth: int) -> Any:
        self.lines.setdefault(place, _line(event))
        before = self.values
        self._count(event, 1)
        if depth > DEEPEST:
            raise self._refusal(event, f"values are nested more than {DEEPEST} deep")
        if isinstance(event, AliasEvent):
            return self._repeated(event)
        if event.tag is not None and event.tag != "!":
            raise self._refusal(
                event, f"the tag {shown(event.tag)} asks for an object. Write the plain value"
            )
        if isinstance(event, ScalarEvent):
            plain = event.implicit[0] and event.tag is None
            value = plain_value(event.value) if plain else event.value
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(place, depth)
        else:
            value = self._list(place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.values - before)
        return value

    def _list(self, place: Place, depth: int) -> list[Any]:
        items: list[Any] = []
        for event in iter(self._next, None):
            items.append(self._value(event, (*place, len(items)), depth + 1))
        return items

    def _mapping(self, place: Place, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in iter(self._next, None):
            key = event.value if isinstance(event, ScalarEvent) else None
            if key is None or event.tag not in (None, "!"):
                raise self._refusal(event, "a key must be plain text")
            if key == "<<" and event.implicit[0]:
                raise self._refusal(event, "merge keys (<<) are not read. Write the keys out")
            if key in found:
                first = self.lines[(*place, key)]
                raise self._refusal(
                    event, f"the key {shown(key)!r} is there twice, first in line {first}"
                )
            self._count(event, 1)
            self.lines[(*place, key)] = _line(event)
            found[key] = self._value(next(self.events), (*place, key), depth + 1)
        return found

    def _next(self) -> Any:
        """The next event inside a list or mapping; None at its end."""
        event = next(self.events)
        return None if isinstance(event, MappingEndEvent | SequenceEndEvent) else event

    def _repeated(self, event: AliasEvent) -> Any:
        if event.anchor not in self.anchors:
            raise self._refusal(
                event, f"the alias *{shown(event.anchor)} holds itself, or marks nothing above it"
            )
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        return value

    def _count(self, event: Event, values: int) -> None:
        self.values += values
        if self.values > MOST_VALUES:
            raise self._refusal(
                event, f"the file unfolds to over {MOST_VALUES:,} values. A recipe has a few dozen"
            )

    def _refusal(self, event: Event, what: str) -> InvalidRecipe:
        return InvalidRecipe(f"{self.file}, line {_line(event)}: {what}.")


def plain_value(text: str) -> Any:
    """What an unquoted word stands for: a number, true, false, None, or else text.

    Example:
        >>> [plain_value(word) for word in ("1e-5", "12", "true", "yes", "010", "1_000")]
        [1e-05, 12, True, 'yes', '010', '1_000']
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > LONGEST_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return float(text) if _FLOAT.fullmatch(text) else text


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1 if event.start_mark else 0
