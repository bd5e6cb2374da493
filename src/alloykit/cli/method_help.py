"""What ``alloykit merge METHOD --help`` adds: the method's own options, from its docstring."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alloykit.recipes.parameters import Parameter
    from alloykit.registry import Entry

WIDTH = 96
INDENT = 26


def method_help(words: Sequence[str]) -> str:
    """The options of the first word that is a merge method; "" where there is none."""
    from alloykit.registry import merge_methods

    method = next((word for word in words if not word.startswith("-")), "")
    if method not in merge_methods.names():
        return ""
    return entry_help(merge_methods.entry(method), f"docs/methods.md#merge-method-{method}")


def entry_help(entry: Entry, where: str) -> str:
    """The options that a method adds to a command, and where to read all about it."""
    from alloykit.recipes.parameters import OURS, parameters_of

    said = dict(documented(inspect.getdoc(entry.factory) or ""))
    theirs = {ours: name for name, ours in OURS.items()}
    lines = [f"{entry.name}: {entry.summary}", ""]
    for name, parameter in parameters_of(entry).items():
        option = f"--{theirs.get(name, name).replace('_', '-')} {_form(parameter)}".rstrip()
        text = " ".join(filter(None, [said.get(name, ""), _default(parameter)]))
        lines.append(_entry(option, text))
    if len(lines) == 2:
        lines.append(f"{entry.name} has no options of its own.")
    return "\n" + "\n".join(lines) + f"\n\nAll about it: {where}\n"


def documented(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and text of every entry under ``Args:``."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w)", section[1], flags=re.MULTILINE)[1:] if section else []
    for entry in entries:
        name, _, text = entry.partition(":")
        yield name, " ".join(text.split())


def _form(parameter: Parameter) -> str:
    if parameter.choices:
        return "|".join(parameter.choices)
    if parameter.kinds == {"truth"}:
        return ""
    number = "N" if parameter.kinds & {"number", "integer"} else "WORD"
    return f"{number} [N ...]" if parameter.per_member else number


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "[required]"
    if parameter.default is None:
        return ""
    if parameter.kinds == {"truth"} and parameter.default:
        return "[default: yes; --no-... turns it off]"
    return f"[default: {parameter.default}]"


def _entry(option: str, text: str) -> str:
    """An option and its text, in two columns."""
    lines = textwrap.wrap(text, WIDTH - INDENT) or [""]
    first = f"  {option}".ljust(INDENT)
    if len(first) > INDENT:
        return "\n".join([first, *(" " * INDENT + line for line in lines)])
    return "\n".join([first + lines[0], *(" " * INDENT + line for line in lines[1:])]).rstrip()
