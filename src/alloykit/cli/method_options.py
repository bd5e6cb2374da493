"""A method's own options on the command line, such as ``--density 0.3``, from the registry."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from alloykit.recipes.parameters import Parameter
    from alloykit.registry import Entry

TYPED = "alloykit.typed"
"""Where the context of a command keeps what was typed besides its declared options."""

MANY_NUMBERS = ("--weights", "--num-examples")
"""Declared options that take one number per model."""

_NUMBER = re.compile(r"(?i)[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(inf|infinity)|nan")
_TRUTH = frozenset({"true", "false", "yes", "no", "on", "off"})


@dataclass
class Typed:
    """What was typed, sorted.

    Attributes:
        declared: What the command's own options and arguments take.
        options: Name and values of every option that is not declared, in order.
        stats: Kind of statistics -> files.
    """

    declared: list[str] = field(default_factory=list)
    options: list[tuple[str, list[str]]] = field(default_factory=list)
    stats: dict[str, list[str]] = field(default_factory=dict)


class MethodCommand(TyperCommand):
    """A command whose further options are the parameters of the method that it is given first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the method's own options out, and parse the rest as declared."""
        valued = {name for each in self.params for name in each.opts if not _is_flag(each)}
        flags = {name for each in self.params for name in each.opts if _is_flag(each)}
        typed = sorted_arguments(args, valued, flags | {"--help"}, self.entry_of)
        ctx.meta[TYPED] = typed
        return super().parse_args(ctx, list(typed.declared))

    @staticmethod
    def entry_of(declared: Sequence[str]) -> Entry | None:
        """The method that these words name: the first of them."""
        from alloykit.registry import merge_methods

        method = next((word for word in declared if not word.startswith("-")), "")
        return merge_methods.entry(method) if method in merge_methods.names() else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's help, and the options of the method that was typed."""
        super().format_help(ctx, formatter)
        typed = ctx.meta.get(TYPED)
        if typed is not None and any(not word.startswith("-") for word in typed.declared):
            from alloykit.cli.method_help import method_help

            formatter.write(method_help(typed.declared))


def _is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def sorted_arguments(
    arguments: Sequence[str],
    valued: Collection[str],
    flags: Collection[str],
    entry_of: Callable[[Sequence[str]], Entry | None] = MethodCommand.entry_of,
) -> Typed:
    """Tell declared options, the method's options, numbers and files apart.

    Numbers after ``--weights``, ``--num-examples`` and a method's option belong to it, however
    many they are; a file whose name is a number is written ``./7``. ``--stats`` takes a kind and
    every word up to the next option.

    Args:
        arguments: What follows the command's name.
        valued: Declared options with one value.
        flags: Declared options without.
        entry_of: Declared words -> the method that they name, if any.
    """
    typed, words = Typed(), deque(arguments)
    while words:
        word = words.popleft()
        name, equals, value = word.partition("=")
        if word == "--":
            typed.declared += ["--", *words]
            break
        if name == "--stats":
            kind, *files = [*([value] if equals else []), *_words(words)] or [""]
            typed.stats.setdefault(kind, []).extend(files)
        elif name in MANY_NUMBERS:
            numbers = [value] if equals else _numbers(words) or _one(words)
            typed.declared.append(f"{name}={','.join(numbers)}")
        elif name in flags or not word.startswith("--"):
            typed.declared.append(word)
            if word in valued and words:
                typed.declared.append(words.popleft())
        elif name in valued:
            typed.declared += [word] if equals or not words else [word, words.popleft()]
        else:
            entry = entry_of(typed.declared)
            values = [value] if equals else _values(name, words, entry)
            typed.options.append((name, values))
    return typed


def _values(name: str, words: deque[str], entry: Entry | None) -> list[str]:
    """The words after a method's option that belong to it."""
    numbers = _numbers(words)
    if not numbers and words and (words[0].lower() in _TRUTH or _takes_words(name, entry)):
        return _one(words)
    return numbers


def _takes_words(name: str, entry: Entry | None) -> bool:
    from alloykit.recipes.parameters import parameters_of, python_name

    if entry is None:
        return False
    known = python_name(_plain(name), entry)
    return known is not None and parameters_of(entry)[known].kinds != {"truth"}


def _numbers(words: deque[str]) -> list[str]:
    found = []
    while words and all(_NUMBER.fullmatch(part) for part in words[0].split(",")):
        found.append(words.popleft())
    return found


def _words(words: deque[str]) -> list[str]:
    found = []
    while words and not words[0].startswith("-"):
        found.append(words.popleft())
    return found


def _one(words: deque[str]) -> list[str]:
    return [words.popleft()] if words and not words[0].startswith("-") else []


def _plain(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def method_parameters(
    entry: Entry, options: Sequence[tuple[str, list[str]]], models: int
) -> dict[str, Any]:
    """The method's parameters from its options, each checked for kind and count.

    Args:
        entry: The method.
        options: As ``Typed`` holds them.
        models: Number of models, for options that may have one number for each.

    Raises:
        InvalidParameter: Options that the method does not have, or values of another kind; all
            are listed.
    """
    from alloykit.errors import InvalidParameter, listing
    from alloykit.recipes.parameters import parameters_of, python_name

    known = parameters_of(entry)
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for option, values in options:
        name = python_name(_plain(option), entry)
        negated = python_name(_plain(option).removeprefix("no_"), entry) if name is None else None
        if negated and known[negated].kinds == {"truth"} and not values:
            found[negated] = False
        elif name is None:
            wrong.append(_unknown(option, entry))
        elif name in found:
            wrong.append(f"{option} is there twice.")
        else:
            found[name], mistake = _parsed(known[name], values, models)
            wrong += [f"{option} {mistake}"] if mistake else []
    if wrong:
        raise InvalidParameter(
            f"{entry.name} cannot be used like this:\n{listing(wrong)}\n"
            f"{entry.name} takes: {', '.join(option_names(entry)) or 'no options of its own'}."
        )
    return found


def option_names(entry: Entry) -> list[str]:
    """The options that a method adds to the command."""
    from alloykit.recipes.parameters import WEIGHT, names_in_recipes

    return [f"--{name.replace('_', '-')}" for name in names_in_recipes(entry) if name != WEIGHT]


def _unknown(option: str, entry: Entry) -> str:
    from alloykit.errors import did_you_mean

    known = [*option_names(entry), *DECLARED]
    return f"There is no option {option}.{did_you_mean(option, known)}"


DECLARED = (
    "--output", "--base", "--weights", "--compat", "--stats", "--dtype", "--seed", "--memory",
    "--threads", "--device", "--executor", "--max-shard-size", "--resume", "--dry-run",
    "--manifest", "--digests", "--overwrite", "--trust-pickle", "--json", "--schema", "--strict",
)  # fmt: skip
"""The options that every merge takes, for suggestions; a test compares them with the command."""


def _parsed(parameter: Parameter, values: Sequence[str], models: int) -> tuple[Any, str]:
    """The value of one option, and what is wrong with it; "" where nothing is."""
    from alloykit.recipes.strict_yaml import plain_value

    if not values and parameter.kinds == {"truth"}:
        return True, ""
    if not values:
        return None, "needs a value."
    parts = [part for value in values for part in value.split(",")] if _is_list(values) else values
    plain = [parameter.accepted(plain_value(_without_plus(part))) for part in parts]
    mistake = next((said for each in plain if (said := parameter.mistake(each))), "")
    if mistake or len(plain) == 1:
        return plain[0], mistake
    if not parameter.per_member:
        return None, f"takes one value; {len(plain)} were given. For a gradient write a recipe."
    if len(plain) != models:
        return None, f"has {len(plain)} numbers for {models} models. Give one, or one per model."
    return plain, ""


def _is_list(values: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(part) for value in values for part in value.split(","))


def _without_plus(text: str) -> str:
    return text.removeprefix("+")
