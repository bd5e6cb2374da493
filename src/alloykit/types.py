"""The words of alloykit as frozen dataclasses: what flows between the rooms of the house."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Task = Literal["classification", "regression", "tokens"]
Split = Literal["train", "validation", "test"]
Kind = Literal["logits", "probabilities", "values"]
Family = Literal[
    "member", "predictions", "weights", "soup", "fusion", "student", "federated", "retrained"
]
"""Sorts of candidates in a comparison."""


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
        return math.prod(self.shape)

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


GRAIN = 1 << 16
"""Elements that surveys see, and random numbers are drawn for, at a time; part of what makes the
same bits for any block size. Changing it changes what random methods and surveys give."""


@dataclass(frozen=True)
class TensorGroup:
    """The tensor of one name from every member, or a block of it: all that a merge method sees.

    Attributes:
        name: Name of the tensor.
        members: Stable ids, so that randomness never depends on the order of the command line.
        tensors: One per member, real, in the compute dtype; read-only by agreement. A flat block
            ``[n]`` for methods of the unit "element", whole slices of the first dimension
            ``[k, *shape[1:]]`` for "row", and ``[*shape]`` for "tensor".
        weights: One per member.
        base: The base's tensor, shaped like the members', or None.
        stats: Statistics such as "fisher" or "gram", one tensor per member.
        seed: The seed of the merge.
        start: Position of the first element in the flattened whole tensor.
        coarse: Whether members and result are stored with at most half of float32's digits, so
            that its last ones do not show.
    """

    name: str
    members: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[float, ...]
    base: Tensor | None = None
    stats: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    seed: int = 0
    start: int = 0
    coarse: bool = False

    def uniform(self, member: str) -> Tensor:
        """Numbers in [0, 1), float32, shaped like the tensors, one drawn for each element.

        They depend on (seed, tensor name, member id, position of the element) alone.
        """
        like = self.tensors[0]
        first, last = self.start // GRAIN, -(-(self.start + like.numel()) // GRAIN)
        grains = [self._grain(member, index) for index in range(first, max(last, first + 1))]
        drawn = np.concatenate(grains) if len(grains) > 1 else grains[0]
        offset = self.start - first * GRAIN
        # 24 bits are what a float32 in [0, 1) holds without rounding up to 1.
        drawn >>= 8
        bits = torch.from_numpy(drawn[offset : offset + like.numel()].view(np.int32))
        numbers = bits.to(torch.float32).mul_(2.0**-24)
        return numbers.reshape(like.shape).to(like.device)

    def _grain(self, member: str, index: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        text = f"{self.seed}\0{self.name}\0{member}\0{index}".encode()
        words = np.frombuffer(hashlib.blake2b(text, digest_size=24).digest(), np.uint64)
        source = np.random.SFC64(0)
        # The hash as the state itself: seeding the usual way takes longer than drawing.
        state = np.append(words, np.uint64(1))
        source.state = {**source.state, "state": {"state": state}}
        return source.random_raw(GRAIN // 2).view(np.uint32)


class Scan(Protocol):
    """Whole tensors, walked in blocks before anything is merged: what a survey is given."""

    @property
    def name(self) -> str:
        """Name of the tensor, or "" for the whole model."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor; of the whole model ``(numel,)``."""

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the members."""

    @property
    def weights(self) -> tuple[float, ...]:
        """One per member."""

    @property
    def seed(self) -> int:
        """The seed of the merge."""

    @property
    def numel(self) -> int:
        """Number of elements of one member."""

    def total(self, statistic: Callable[[TensorGroup], Tensor]) -> Tensor:
        """Σ over all blocks of ``statistic(block)``, in float64 or int64.

        The blocks, and the order of the sum, are the same for any block size or thread count.
        Blocks are shaped as the method's unit says ("tensor" walks as "element").
        """

    def products(self) -> Tensor:
        """Inner products ``[member, member]`` of the whole task vectors, flattened, in float64.

        A task vector is the member less the base; the member itself where there is no base.
        """

    def sample(self) -> TensorGroup:
        """At most 65,536 of the elements, from evenly spaced places, flat; the same every time."""


Unit = Literal["element", "row", "tensor"]
"""The smallest piece that a merge may be given: any flat block, whole slices of the first
dimension (the whole of a vector), or nothing less than the tensor."""


@dataclass(frozen=True)
class MergeMethod:
    """A way of making one tensor from the tensors of several members.

    Attributes:
        name: Its registered name.
        parameters: What it was built with, so that a worker can rebuild it by name.
        merge: The pure function; its second argument is what ``survey`` returned, or None.
        needs: Of "base", "fisher", "gram".
        optional: What it makes use of where it is given.
        members: How many models it takes.
        unit: The smallest piece that it may be given.
        ordered: Whether the order of the members carries meaning.
        weights: "shares" that are non-negative and sum to one (uniform by default), or "factors",
            any finite numbers (1 by default).
        per_member: Parameters that may be one number or a list with one per member.
        survey: An earlier pass over what ``scope`` says, where one is needed.
        scope: Whether the survey goes over one tensor at a time or over the whole model.
        linear: Whether each element is a sum of the members' own elements, so that what is not
            finite in any of them shows in it.
        factors: ``(weights, state) -> factors`` of a linear method whose result is one sum: one
            factor per member, behind that of the base where it takes part.
    """

    name: str
    parameters: Mapping[str, Any]
    merge: Callable[[TensorGroup, Any], Tensor]
    needs: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    members: range = range(1, 10_000)
    unit: Unit = "element"
    ordered: bool = False
    weights: Literal["shares", "factors"] = "shares"
    per_member: frozenset[str] = frozenset()
    survey: Callable[[Scan], Any] | None = None
    scope: Literal["tensor", "model"] = "tensor"
    linear: bool = False
    factors: Callable[[Sequence[float], Any], Sequence[float]] | None = None


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
        family: Which sort of combining it is; "retrained" are the ceiling and the floors.
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
        history: How a trained candidate learned, as ``training.history.History.to_json`` gives it.
        reliance: Which member is believed for which class: "members", "classes", "what", "matrix".
        notes: Warnings that a reader must see next to the numbers.
    """

    candidate: str
    family: Family
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
    history: Mapping[str, Any] = field(default_factory=dict)
    reliance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
