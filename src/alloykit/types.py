"""The words of alloykit as frozen dataclasses: what flows between the rooms of the house."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Task = Literal["classification", "regression", "tokens"]
Split = Literal["train", "validation", "test"]
Kind = Literal["logits", "probabilities", "values"]


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it.

    Attributes:
        shape: Its dimensions; ``()`` for a scalar.
        dtype: Its element type as stored.
        place: Where its bytes live. Two names with one place are tied: the same tensor twice.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.numel * self.dtype.itemsize


@runtime_checkable
class Checkpoint(Protocol):
    """A store of named tensors that is readable piece by piece."""

    @property
    def id(self) -> str:
        """A digest or a given name: stable, never a position."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text that the file carries."""

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape, dtype, place; reads no tensor data."""

    def read(self, name: str, *, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor of that name; with a range, the flat elements ``start`` to ``stop``."""


@dataclass(frozen=True)
class TensorGroup:
    """The tensor of one name from every member: all that a merge method sees.

    Attributes:
        name: Name of the tensor.
        members: Stable ids, so that randomness never depends on the order of the command line.
        tensors: One per member, ``[*shape]``, in the compute dtype; read-only by agreement.
        weights: One per member.
        base: The base's tensor ``[*shape]``, or None.
        stats: Statistics such as "fisher" or "gram", one tensor per member.
        seed: The seed of the merge.
    """

    name: str
    members: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[float, ...]
    base: Tensor | None = None
    stats: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    seed: int = 0

    def generator(self, member: str) -> torch.Generator:
        """A random generator that depends on (seed, tensor name, member id) alone."""
        text = f"{self.seed}\0{self.name}\0{member}".encode()
        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        return torch.Generator().manual_seed(key % (1 << 63))


@dataclass(frozen=True)
class MergeMethod:
    """A way of making one tensor from the tensors of several members.

    Attributes:
        name: Its registered name.
        parameters: What it was built with, so that a worker can rebuild it by name.
        merge: The pure function; its second argument is what ``survey`` returned, or None.
        needs: Of "base", "fisher", "gram", "validation".
        members: How many models it takes.
        elementwise: Whether it may be given blocks of a tensor instead of the whole.
        ordered: Whether the order of the members carries meaning.
        survey: An earlier pass over the whole model, where one is needed.
    """

    name: str
    parameters: Mapping[str, Any]
    merge: Callable[[TensorGroup, Any], Tensor]
    needs: frozenset[str]
    members: range
    elementwise: bool
    ordered: bool
    survey: Callable[..., Any] | None = None


State = dict[str, Tensor]
"""What an ensemble rule learned from validation data: small named tensors."""


@dataclass(frozen=True)
class EnsembleRule:
    """A way of making one prediction from the predictions of several members.

    Attributes:
        name: Its registered name.
        parameters: What it was built with.
        combine: ``(stack, state) -> pooled``. For classification and tokens the stack holds
            log-probabilities ``[member, example, class]`` and the result log-probabilities
            ``[example, class]``; for regression values ``[member, example, *output]``.
        fit: ``(stack, targets) -> state``, or None where there is nothing to learn.
        tasks: The tasks that it serves.
    """

    name: str
    parameters: Mapping[str, Any]
    combine: Callable[[Tensor, State], Tensor]
    fit: Callable[[Tensor, Tensor], State] | None
    tasks: frozenset[str]


@dataclass(frozen=True)
class Predictions:
    """What the members said on the same examples.

    Attributes:
        outputs: ``[member, example, *output]``, memory-mapped when large.
        kind: Whether they are logits, probabilities or values.
        members: Names, in the order of the first dimension.
        targets: ``[example]`` class indices, or ``[example, *output]`` values.
        split: The split that they belong to.
    """

    outputs: Tensor
    kind: Kind
    members: tuple[str, ...]
    targets: Tensor | None
    split: Split


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate on all examples.
        low: Lower end.
        high: Upper end.
        level: Coverage asked for, in (0, 1).
    """

    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Costs:
    """What one candidate costs to keep and to run.

    Attributes:
        parameters: Number of parameters and buffers' elements that it needs.
        bytes: Size on disk.
        peak_memory: Largest number of live tensor bytes during one batch, members included.
        latency: Seconds per example.
        forward_passes: Members run for one prediction.
        fit_seconds: Seconds spent on choosing or fitting it.
    """

    parameters: int
    bytes: int
    peak_memory: int
    latency: float
    forward_passes: int
    fit_seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a candidate, what it scores, what it costs, or why it is not there.

    Attributes:
        candidate: Unique, stable, readable name ("average of probabilities").
        family: "member", "predictions", "weights" or "soup".
        status: "done", "skipped" or "failed".
        reason: Why it was skipped, or how it failed; "" when done.
        members: Names of the members that it combines.
        recipe: What rebuilds it: method, parameters, members, weights, fitted state. JSON.
        validation: Metric name -> value on validation; this is what chooses.
        test: Metric name -> value on test; this is what reports.
        intervals: Metric name -> interval on test.
        improvement: Gain of the main metric over the best single member on test, paired by
            example; positive is better whatever the metric's direction.
        validation_improvement: The same gain on validation; this is what chooses.
        p_value: Exact McNemar test against the best single member on test, where the main metric
            is accuracy.
        validation_p_value: The same on validation.
        costs: What it takes to keep and run.
        calibration: Bins of the reliability diagram: (mean confidence, accuracy, examples).
        notes: Warnings that a reader must see next to the numbers.
    """

    candidate: str
    family: Literal["member", "predictions", "weights", "soup"]
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    members: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    improvement: Interval | None = None
    validation_improvement: Interval | None = None
    p_value: float | None = None
    validation_p_value: float | None = None
    costs: Costs | None = None
    calibration: tuple[tuple[float, float, int], ...] = ()
    notes: tuple[str, ...] = ()
