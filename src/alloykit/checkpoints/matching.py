"""Whether checkpoints fit together, and in which words to say that they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import MismatchedCheckpoints, listing
from alloykit.types import Checkpoint, TensorSpec

LONGEST_LABEL = 24


@dataclass(frozen=True)
class Match:
    """How the names, shapes and dtypes of several checkpoints compare.

    Attributes:
        names: Names that every checkpoint has, in the order of the first.
        problems: What keeps them from being combined, one line per tensor, aligned as a table.
        notes: What differs without being in the way: float dtypes, ties.
        summary: The problems counted: "2 tensors differ in shape".
        hint: The likely cause and how to go on; "" where there is nothing to say.
        count: Number of checkpoints compared.
    """

    names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    summary: str = ""
    hint: str = ""
    count: int = 0

    @property
    def same(self) -> bool:
        """Whether they can be combined: same names, shapes and kinds."""
        return not self.problems

    def require(self, verb: str = "merged") -> None:
        """Raise MismatchedCheckpoints with everything that differs, unless they fit.

        Args:
            verb: What was to be done with them: "These cannot be <verb>".
        """
        if self.problems:
            head = f"{self.count} checkpoints cannot be {verb}: {self.summary}."
            raise MismatchedCheckpoints(
                f"{head}\n{listing(self.problems)}" + (f"\n{self.hint}" if self.hint else "")
            )


def match(checkpoints: Sequence[Checkpoint]) -> Match:
    """Compare names, shapes and kinds of tensors; reads no tensor data.

    Use it before combining: ``match(members).require()``.

    Args:
        checkpoints: Two or more; fewer always match.

    Example:
        >>> import torch
        >>> from alloykit.checkpoints.memory import MemoryCheckpoint
        >>> a = MemoryCheckpoint({"w": torch.zeros(2, 3)}, "a")
        >>> b = MemoryCheckpoint({"w": torch.zeros(4, 3)}, "b")
        >>> print("; ".join(match([a, b]).problems))
        w   a: [2, 3]   b: [4, 3]
    """
    labels = _labels([checkpoint.id for checkpoint in checkpoints])
    stores = dict(zip(labels, (checkpoint.specs() for checkpoint in checkpoints), strict=True))
    every = list(dict.fromkeys(name for specs in stores.values() for name in specs))
    names = tuple(name for name in every if all(name in specs for specs in stores.values()))
    common = set(names)
    absent = [name for name in every if name not in common]
    reshaped = [name for name in names if _differs(stores, name, lambda s: s.shape)]
    mixed = [name for name in names if _differs(stores, name, lambda s: _kind(s.dtype))]
    rows = [
        *_rows(stores, absent, lambda spec: "there" if spec else "missing"),
        *_rows(stores, reshaped, lambda spec: str(list(spec.shape)) if spec else ""),
        *_rows(stores, mixed, lambda spec: _short(spec.dtype) if spec else ""),
    ]
    return Match(
        names,
        _aligned(rows),
        (*_dtype_notes(stores, names), *_tie_notes(stores)),
        _summary(len(absent), len(reshaped), len(mixed)),
        " ".join(filter(None, (_prefix_hint(stores), _rows_hint(stores, reshaped)))),
        len(checkpoints),
    )


Stores = Mapping[str, Mapping[str, TensorSpec]]
"""Label of a checkpoint -> its specs."""


def matching_groups(checkpoints: Sequence[Checkpoint]) -> list[list[int]]:
    """Positions of the checkpoints that match among themselves, in the order of their firsts.

    Example:
        >>> from alloykit.checkpoints.memory import MemoryCheckpoint
        >>> import torch
        >>> a, b, c = (MemoryCheckpoint({n: torch.ones(2)}) for n in ("w", "v", "w"))
        >>> matching_groups([a, b, c])
        [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    for position, checkpoint in enumerate(checkpoints):
        for group in groups:
            if match([checkpoints[group[0]], checkpoint]).same:
                group.append(position)
                break
        else:
            groups.append([position])
    return groups


def _labels(ids: Sequence[str]) -> list[str]:
    """The ids, shortened, and numbered where two are alike."""
    short = [shown(i) if len(i) <= LONGEST_LABEL else f"{shown(i)[:LONGEST_LABEL]}…" for i in ids]
    if len(set(short)) == len(short):
        return short
    return [f"{number} ({label})" for number, label in zip(count(1), short, strict=False)]


def _differs(stores: Stores, name: str, aspect: Callable[[TensorSpec], object]) -> bool:
    return len({aspect(specs[name]) for specs in stores.values()}) > 1


def _kind(dtype: object) -> str:
    """The kind of element (float, complex, bool, int): kinds must not be mixed."""
    name = _short(dtype)
    return next((kind for kind in ("float", "complex", "bool") if kind in name), "int")


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _rows(
    stores: Stores, names: Sequence[str], cell: Callable[[TensorSpec | None], str]
) -> list[list[str]]:
    """One row a name, one column a checkpoint."""
    return [
        [shown(name), *(f"{label}: {cell(specs.get(name))}" for label, specs in stores.items())]
        for name in names
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return tuple("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _summary(absent: int, reshaped: int, mixed: int) -> str:
    parts = []
    if absent:
        parts.append(f"{counted(absent, 'tensor')} {_verb(absent, 'are')} not in all of them")
    if reshaped:
        parts.append(f"{counted(reshaped, 'tensor')} {_verb(reshaped, 'differ')} in shape")
    if mixed:
        parts.append(f"{counted(mixed, 'tensor')} {_verb(mixed, 'differ')} in kind")
    return ", ".join(parts)


def _verb(count: int, plural: str) -> str:
    return {"are": "is", "differ": "differs"}[plural] if count == 1 else plural


def _dtype_notes(stores: Stores, names: Sequence[str]) -> list[str]:
    """One note for all tensors that are stored with different precision."""
    mixed = [name for name in names if _differs(stores, name, lambda s: s.dtype)]
    mixed = [name for name in mixed if not _differs(stores, name, lambda s: _kind(s.dtype))]
    if not mixed:
        return []
    columns = ", ".join(
        f"{label}: {_short(Counter(specs[name].dtype for name in mixed).most_common(1)[0][0])}"
        for label, specs in stores.items()
    )
    return [f"{counted(len(mixed), 'tensor')} {_verb(len(mixed), 'differ')} in dtype ({columns})"]


def _ties(specs: Mapping[str, TensorSpec]) -> set[frozenset[str]]:
    """Groups of names that are one tensor."""
    groups: dict[str, set[str]] = {}
    for name, spec in specs.items():
        groups.setdefault(spec.place, set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def _tie_notes(stores: Stores) -> list[str]:
    ties = {label: _ties(specs) for label, specs in stores.items()}
    notes = []
    for group in sorted({g for groups in ties.values() for g in groups}, key=sorted):
        where = [label for label, groups in ties.items() if group in groups]
        if len(where) < len(stores):
            names = " and ".join(shown(name) for name in sorted(group))
            notes.append(f"{names} are one tensor in {', '.join(where)} and separate elsewhere")
    return notes


def _prefix_hint(stores: Stores) -> str:
    """For names that are those of the first checkpoint behind a prefix, or the reverse."""
    first = next(iter(stores), "")
    for other in stores:
        for longer, shorter in ((other, first), (first, other)):
            prefix = _prefix(set(stores[longer]), set(stores[shorter]))
            if prefix:
                return (
                    f"The names of {longer} are those of {shorter} behind {prefix!r}: "
                    f"rename them, and these fit."
                )
    return ""


def _prefix(longer: set[str], shorter: set[str]) -> str:
    probe = min(shorter, key=len, default="")
    for name in longer:
        prefix = name.removesuffix(probe)
        if prefix not in (name, "") and {prefix + each for each in shorter} == longer:
            return prefix
    return ""


def _rows_hint(stores: Stores, reshaped: Sequence[str]) -> str:
    """For one checkpoint that has more rows than all others, in every tensor that differs."""
    if not reshaped:
        return ""
    shapes = {label: [specs[name].shape for name in reshaped] for label, specs in stores.items()}
    if not all(shape for every in shapes.values() for shape in every):
        return ""
    for label, own in shapes.items():
        rest = {tuple(other) for key, other in shapes.items() if key != label}
        if len(rest) != 1:
            continue
        more = {a[0] - b[0] for a, b in zip(own, next(iter(rest)), strict=True)}
        alike = all(a[1:] == b[1:] for a, b in zip(own, next(iter(rest)), strict=True))
        if alike and len(more) == 1 and (rows := more.pop()) > 0:
            return (
                f"{label} has {counted(rows, 'more row')}, "
                f"probably added tokens or classes. Resize {label} first: shapes must be equal."
            )
    return ""
