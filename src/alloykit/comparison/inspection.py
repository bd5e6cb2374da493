"""Can these be combined, and how? Answered from the tensors alone, without data."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alloykit.checkpoints.matching import match, matching_groups
from alloykit.checkpoints.quantised import packed
from alloykit.names import takes_maximum
from alloykit.numerics import is_averaged, same_values, unusable_values
from alloykit.types import Checkpoint

BLOCK = 1 << 22


@dataclass(frozen=True)
class Pair:
    """How two checkpoints relate, over all averaged tensors.

    Attributes:
        first: Id of one.
        second: Id of the other.
        distance: Euclidean distance of all averaged elements.
        relative_distance: That, over the mean of the two norms.
        cosine: Cosine of the angle between them; of their task vectors where a base is given. NaN
            where one of the two is zero.
        sign_agreement: Fraction of elements with the same sign, elements where both are zero left
            out; of the task vectors where a base is given. NaN where nothing is left.
        identical: Whether every tensor is equal.
    """

    first: str
    second: str
    distance: float
    relative_distance: float
    cosine: float
    sign_agreement: float
    identical: bool


@dataclass(frozen=True)
class Inspection:
    """What was found out about N checkpoints without data.

    Attributes:
        members: One mapping each: id, tensors, parameters, bytes, dtypes, integer and tied tensors.
        problems: What stands in the way of averaging, one line each.
        notes: What a reader should know and need not mend.
        pairs: How they relate, two by two; only those that match.
        groups: Ids of those that match among themselves; one group where all do.
        verdict: The answer in plain words.
    """

    members: tuple[dict[str, object], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(default=())
    groups: tuple[tuple[str, ...], ...] = field(default=())
    verdict: str = ""

    @property
    def combinable(self) -> bool:
        """Whether their weights can be averaged as they are."""
        return not self.problems


def inspect_checkpoints(
    checkpoints: Sequence[Checkpoint], base: Checkpoint | None = None, *, values: bool = True
) -> Inspection:
    """Describe each checkpoint, list what does not match, and measure how far they are apart.

    Each tensor is read once, in blocks.

    Args:
        checkpoints: One or more.
        base: What they were fine-tuned from.
        values: Whether to read the tensors; without, names, shapes and dtypes are compared.
    """
    every = [*checkpoints, *([base] if base else [])]
    found = match(every)
    problems = [*found.problems, *_packed_problems(every)]
    positions = matching_groups(checkpoints)
    pairs: list[Pair] = []
    for group in positions:
        alike = [checkpoints[position] for position in group]
        fits = base is not None and match([base, alike[0]]).same
        related, wrong = _relate(alike, base if fits else None) if values else ([], [])
        pairs += related
        problems += wrong
    groups = tuple(tuple(checkpoints[i].id for i in group) for group in positions)
    notes = [note for c in every for note in getattr(c, "notes", ())]
    return Inspection(
        members=tuple(_described(checkpoint) for checkpoint in checkpoints),
        problems=tuple(problems),
        notes=(*notes, *found.notes),
        pairs=tuple(pairs),
        groups=groups,
        verdict=_verdict(problems, pairs, groups, base is not None)
        if values
        else _by_headers(problems, groups),
    )


def _packed_problems(checkpoints: Sequence[Checkpoint]) -> list[str]:
    return [
        f"{name}   {checkpoint.id}: {words}"
        for checkpoint in checkpoints
        for name, words in packed(checkpoint.specs()).items()
    ]


def _described(checkpoint: Checkpoint) -> dict[str, object]:
    specs = checkpoint.specs()
    distinct = {(spec.place, spec.shape): spec for spec in specs.values()}
    return {
        "id": checkpoint.id,
        "tensors": len(specs),
        "parameters": sum(spec.numel for spec in distinct.values() if is_averaged(spec.dtype)),
        "bytes": sum(spec.nbytes for spec in distinct.values()),
        "dtypes": sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()}),
        "integer_tensors": [n for n, spec in specs.items() if not is_averaged(spec.dtype)],
        "tied_tensors": len(specs) - len(distinct),
    }


class _Sums:
    """Running sums over the tensors of one pair, in double precision."""

    def __init__(self) -> None:
        self.squares = [0.0, 0.0]
        self.moved = [0.0, 0.0]
        self.dot = self.difference = 0.0
        self.agreeing = self.signed = 0
        self.identical = True

    def add(self, first: Tensor, second: Tensor, base: Tensor | None) -> None:
        """Take in a block of both; one that holds infinities has no distance and no angle."""
        self.identical &= same_values([first, second])
        every = [first, second, *([] if base is None else [base])]
        if is_averaged(first.dtype) and not any(map(unusable_values, every)):
            self._add_block(*every)

    def _add_block(self, first: Tensor, second: Tensor, base: Tensor | None = None) -> None:
        wide = torch.complex128 if first.is_complex() else torch.float64
        one, other = first.to(wide), second.to(wide)
        origin = torch.zeros_like(one) if base is None else base.to(wide)
        tau, rho = one - origin, other - origin
        for i, (value, moved) in enumerate(((one, tau), (other, rho))):
            self.squares[i] += float(value.abs().square().sum())
            self.moved[i] += float(moved.abs().square().sum())
        self.dot += float((tau * rho.conj()).real.sum())
        self.difference += float((one - other).abs().square().sum())
        signs, others = torch.sgn(tau), torch.sgn(rho)
        counted = (signs != 0) | (others != 0)
        self.agreeing += int((counted & (signs == others)).sum())
        self.signed += int(counted.sum())

    def pair(self, first: str, second: str) -> Pair:
        norms = [math.sqrt(square) for square in self.squares]
        mean, distance = sum(norms) / 2, math.sqrt(self.difference)
        spread = math.sqrt(self.moved[0]) * math.sqrt(self.moved[1])
        return Pair(
            first=first,
            second=second,
            distance=distance,
            relative_distance=distance / mean if mean else 0.0,
            cosine=self.dot / spread if spread else math.nan,
            sign_agreement=self.agreeing / self.signed if self.signed else math.nan,
            identical=self.identical,
        )


def _relate(
    checkpoints: Sequence[Checkpoint], base: Checkpoint | None
) -> tuple[list[Pair], list[str]]:
    couples = list(itertools.combinations(range(len(checkpoints)), 2))
    sums = {couple: _Sums() for couple in couples}
    problems = []
    for name in _untied_names(checkpoints):
        found = _Values(name, [checkpoint.id for checkpoint in checkpoints])
        for start, stop in _blocks(checkpoints[0].specs()[name].numel):
            tensors = [each.read(name, start=start, stop=stop) for each in checkpoints]
            origin = base.read(name, start=start, stop=stop) if base is not None else None
            found.add(tensors)
            for i, j in couples:
                sums[i, j].add(tensors[i], tensors[j], origin)
        problems += found.problems()
    pairs = [sums[i, j].pair(checkpoints[i].id, checkpoints[j].id) for i, j in couples]
    return pairs, problems


def _blocks(numel: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, numel)) for start in range(0, numel, BLOCK)]


def _untied_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """One name of every tensor: what is tied in all checkpoints counts once."""
    every = [checkpoint.specs() for checkpoint in checkpoints]
    first: dict[tuple[object, ...], str] = {}
    for name in every[0]:
        first.setdefault(tuple((specs[name].place, specs[name].shape) for specs in every), name)
    return list(first.values())


class _Values:
    """What a merge would refuse in one tensor: NaN, infinities, integers that differ."""

    def __init__(self, name: str, ids: Sequence[str]) -> None:
        self._name = name
        self._ids = ids
        self._same = True
        self._differ: set[int] = set()
        self._bad: dict[int, Counter[str]] = {}

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Look at a block of every checkpoint."""
        self._same &= same_values(tensors)
        for position, tensor in enumerate(tensors):
            if not is_averaged(tensor.dtype):
                if not same_values([tensors[0], tensor]):
                    self._differ.add(position)
            elif unusable_values(tensor):
                wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
                counts = {"NaN": int(wide.isnan().sum()), "Inf": int(wide.isinf().sum())}
                self._bad.setdefault(position, Counter()).update(counts)

    def problems(self) -> list[str]:
        """One line for each thing in the way."""
        if self._same:
            return []
        if self._differ:
            others = ", ".join(self._ids[position] for position in sorted(self._differ))
            line = f"{self._name}   integers differ between {self._ids[0]} and {others}"
            return [] if takes_maximum(self._name) else [line]
        return [
            f"{self._name}   {self._ids[position]}: "
            + ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            for position, counts in sorted(self._bad.items())
        ]


def _by_headers(problems: Sequence[str], groups: Sequence[Sequence[str]]) -> str:
    if problems or len(groups) > 1:
        return _verdict(problems, [], groups, False)
    return "Names, shapes and dtypes fit. The values were not read."


def _verdict(
    problems: Sequence[str],
    pairs: Sequence[Pair],
    groups: Sequence[Sequence[str]],
    has_base: bool,
) -> str:
    if problems:
        alike = [" and ".join(group) for group in groups if len(group) > 1]
        among = f" These match among themselves: {'; '.join(alike)}." if len(groups) > 1 else ""
        return (
            "Their weights cannot be averaged as they are; what stands in the way is listed."
            f"{among if alike else ''} "
            "If they predict the same thing, their predictions can be ensembled."
        )
    if pairs and all(pair.identical for pair in pairs):
        return "They are the same model: there is nothing to gain from combining them."
    if not pairs:
        return "One checkpoint: nothing to combine it with."
    farthest = max(pairs, key=lambda pair: pair.relative_distance)
    text = (
        f"Their weights can be averaged. {farthest.first} and {farthest.second} are farthest apart "
        f"({farthest.relative_distance:.2g} of their norm"
    )
    cosine = min((p.cosine for p in pairs if not math.isnan(p.cosine)), default=math.nan)
    whose = "task vectors' cosine" if has_base else "cosine"
    text += ")." if math.isnan(cosine) else f"; {whose} at least {cosine:.2g})."
    if not has_base and cosine < 0.5:
        text += (
            " That far apart they were probably trained from different starts, and a plain average "
            "will fail: see alloykit diagnose."
        )
    return text + " Only data can tell whether it helps: alloykit compare."
