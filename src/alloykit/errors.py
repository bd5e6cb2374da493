"""Every error that alloykit raises on purpose: one tree, each text says how to go on.

AlloyError                              exit code
├── UnknownName(LookupError)                2   a method, rule, metric or key that does not exist
├── InvalidParameter(ValueError)            2   a parameter outside its range
├── InvalidWeights(ValueError)              2   mixing weights that cannot be used as asked
├── MissingInput(ValueError)                2   something that the method needs was not given
├── InvalidStudy(ValueError)                2   a study file with mistakes, all listed
├── InvalidRecipe(ValueError)               2   a recipe with mistakes, all listed
├── DataError(ValueError)                   3   splits, labels or outputs that do not fit
│   └── DataLeak(ValueError)                3   validation and test share examples
├── AlignmentError(ValueError)              4   a model whose units cannot be permuted
├── CheckpointError(ValueError)             4   a file or tensor that cannot be used
│   ├── MismatchedCheckpoints(ValueError)   4   names, shapes or dtypes differ
│   └── UnsafeCheckpoint(PermissionError)   4   a pickle that could run code
├── OutputExists(FileExistsError)           4   writing would replace a file
└── MissingExtra(ImportError)               5   an optional package is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LISTED = 10


class AlloyError(Exception):
    """The root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UnknownName(AlloyError, LookupError):
    """A method, rule, metric, candidate or key that does not exist."""

    exit_code = 2


class InvalidParameter(AlloyError, ValueError):
    """A parameter outside its stated range."""

    exit_code = 2


class InvalidWeights(AlloyError, ValueError):
    """Mixing weights that cannot be used as the caller asked."""

    exit_code = 2


class MissingInput(AlloyError, ValueError):
    """Something that a method needs (members, a base, validation data) was not given."""

    exit_code = 2


class InvalidStudy(AlloyError, ValueError):
    """A study file with mistakes; the text lists all of them."""

    exit_code = 2


class InvalidRecipe(AlloyError, ValueError):
    """A recipe with mistakes; the text lists all of them."""

    exit_code = 2


class DataError(AlloyError, ValueError):
    """Splits, labels or outputs that do not fit together."""

    exit_code = 3


class DataLeak(DataError):
    """Two splits share examples."""


class AlignmentError(AlloyError, ValueError):
    """A model that cannot be traced, or whose permuted copy computes something else."""

    exit_code = 4


class CheckpointError(AlloyError, ValueError):
    """A checkpoint that cannot be read, or holds what cannot be combined."""

    exit_code = 4


class MismatchedCheckpoints(CheckpointError):
    """Checkpoints that differ in names, shapes or kinds of tensors."""


class UnsafeCheckpoint(CheckpointError, PermissionError):
    """A pickle that refers to code."""


class OutputExists(AlloyError, FileExistsError):
    """Writing would replace an existing file or an input."""

    exit_code = 4


class MissingExtra(AlloyError, ImportError):
    """An optional package is not installed."""

    exit_code = 5


def listing(lines: Iterable[str], limit: int = LISTED) -> str:
    """Indent ``lines`` below a message: the first ``limit`` of them, then how many more.

    Example:
        >>> print(listing(["a", "b", "c"], limit=2))
          a
          b
          and 1 more
    """
    every = list(lines)
    shown = [f"  {line}" for line in every[:limit]]
    if len(every) > limit:
        shown.append(f"  and {len(every) - limit} more")
    return "\n".join(shown)


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """A hint for a misspelt name: " Did you mean 'ties'?", or "" where nothing is close."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
