"""A merge as data: what will happen to each tensor, decided from headers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.matching import match
from alloykit.checkpoints.quantised import packed
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import (
    CheckpointError,
    InvalidParameter,
    MismatchedCheckpoints,
    MissingInput,
    listing,
)
from alloykit.execution.settings import Settings
from alloykit.names import takes_maximum
from alloykit.numerics import factors, is_averaged, normalised, promoted
from alloykit.registry import merge_methods
from alloykit.types import Checkpoint, MergeMethod, TensorSpec

Action = Literal["merge", "copy", "maximum", "tie"]


@dataclass(frozen=True)
class Step:
    """What happens to one tensor.

    Attributes:
        name: Its name.
        action: "merge" by the method; "copy" where all members agree; "maximum" of unequal
            counters; "tie" to the tensor named in ``tied_to``.
        shape: Its shape.
        dtype: Name of the output dtype, such as "bfloat16".
        tied_to: The tensor whose result this one shares; "" unless tied.
        parameters: The method's parameters that differ for this tensor.
        weights: One per member where they differ for this tensor.
    """

    name: str
    action: Action
    shape: tuple[int, ...]
    dtype: str
    tied_to: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a merge will do: JSON in, JSON out, no tensor data.

    Attributes:
        method: Registered name.
        parameters: The method's parameters.
        members: Ids, in the order in which they are summed.
        weights: One per member; shares sum to one. A member of weight zero is matched, not read.
        base: Id of the base, or None where the method has no use for one.
        stats: Kinds of statistics that the method is given.
        seed: Seed of methods that draw random numbers.
        steps: One per tensor, in the order of the first member.
    """

    method: str
    parameters: Mapping[str, Any]
    members: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    seed: int
    steps: tuple[Step, ...]
    stats: tuple[str, ...] = ()

    def build_method(self, step: Step | None = None) -> MergeMethod:
        """The merge method that this plan names, with the parameters of that step."""
        parameters = {**self.parameters, **(step.parameters if step else {})}
        method: MergeMethod = merge_methods.build(self.method, **parameters)
        return method

    def specs(self) -> dict[str, TensorSpec]:
        """Name -> shape, dtype and place of the result's tensors."""
        return {
            step.name: TensorSpec(step.shape, getattr(torch, step.dtype), step.tied_to or step.name)
            for step in self.steps
        }

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan from the text that ``to_json`` gave."""
        data = json.loads(text)
        steps = tuple(_step_from(step) for step in data.pop("steps"))
        for key in ("members", "weights", "stats"):
            data[key] = tuple(data[key])
        return cls(**data, steps=steps)


def _step_from(data: Mapping[str, Any]) -> Step:
    weights = data["weights"]
    return Step(
        **{
            **data,
            "shape": tuple(data["shape"]),
            "weights": None if weights is None else tuple(weights),
        }
    )


def plan_merge(
    checkpoints: Sequence[Checkpoint],
    method: str = "linear",
    parameters: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[Any] | None = None,
    strict_weights: bool = False,
    base: Checkpoint | None = None,
    stats: Mapping[str, Sequence[Checkpoint]] | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Plan:
    """Decide what a merge does to every tensor, reading headers only.

    Members of order-free methods are put in the order of their ids, so that the result has the
    same bits for any order of the arguments.

    Args:
        checkpoints: The members. For ordered methods their order carries meaning.
        method: Registered name of the merge method.
        parameters: Its parameters. Each may be a schedule over the tensors: ``ByName``, or
            ``Gradient``; those that are one per member may be a list.
        weights: One per member, each a number or a schedule; None means uniform.
        strict_weights: Refuse shares that do not sum to one, instead of dividing by the sum.
        base: The checkpoint that the members were fine-tuned from; left out of the plan where the
            method has no use for one.
        stats: Kind of statistics ("fisher", "gram") -> one checkpoint per member.
        dtype: Output dtype of averaged tensors of its kind, floating or complex; by default the
            members' own, promoted where they differ.
        seed: For methods that draw random numbers.

    Raises:
        MissingInput: Too few or too many members, or no base where one is needed.
        InvalidWeights: Weights that cannot be used.
        MismatchedCheckpoints: Names, shapes or kinds that differ; all are listed.
        CheckpointError: Packed quantised tensors, or statistics that do not fit.
    """
    given = dict(parameters or {})
    names = list(checkpoints[0].specs()) if checkpoints else []
    per_tensor = Settings.of(names, given, weights)
    built: MergeMethod = merge_methods.build(method, **per_tensor.parameters)
    _require_members(built, checkpoints, base)
    if dtype is not None and not is_averaged(dtype):
        raise InvalidParameter(f"The output dtype must be floating point or complex. Got {dtype}.")
    chosen = _weights(built, per_tensor.weights, len(checkpoints), strict_weights)
    order = list(range(len(checkpoints)))
    if not built.ordered:
        order.sort(key=lambda i: (checkpoints[i].id, chosen[i]))
    ordered = [checkpoints[i] for i in order]
    base = base if "base" in built.needs | built.optional else None
    match([*ordered, *([base] if base else [])]).require("merged")
    _refuse_packed([*ordered, *([base] if base else [])])
    used = _used_stats(built, stats or {}, checkpoints)
    by_tensor = _ByTensor(method, built, per_tensor, len(checkpoints), strict_weights, tuple(order))
    # For order-free methods what has no weight anywhere has no say in the dtype either.
    present = [checkpoints[i] for i in order if per_tensor.varies or chosen[i]]
    return Plan(
        method=method,
        parameters=_reordered(built, built.parameters, order),
        members=tuple(checkpoint.id for checkpoint in ordered),
        weights=tuple(chosen[i] for i in order),
        base=base.id if base else None,
        seed=seed,
        stats=tuple(sorted(used)),
        steps=tuple(_steps(present or ordered, base, dtype, by_tensor)),
    )


@dataclass(frozen=True)
class _ByTensor:
    """What may differ by tensor, and how to resolve it."""

    method: str
    built: MergeMethod
    settings: Settings
    count: int
    strict: bool
    order: tuple[int, ...]

    def at(self, name: str) -> dict[str, Any]:
        """The fields of a step that differ from the plan's."""
        if not self.settings.varies:
            return {}
        resolved, weights = self.settings.at(name)
        built: MergeMethod = merge_methods.build(self.method, **resolved)
        here = _reordered(built, built.parameters, self.order)
        usual = _reordered(self.built, self.built.parameters, self.order)
        chosen = _weights(built, weights, self.count, self.strict)
        return {
            "parameters": {key: value for key, value in here.items() if value != usual[key]},
            "weights": tuple(chosen[i] for i in self.order),
        }


def _weights(
    method: MergeMethod, weights: Sequence[float] | None, count: int, strict: bool
) -> tuple[float, ...]:
    if method.weights == "shares":
        return normalised(weights, count, strict=strict)
    return factors(weights, count)


def _reordered(
    method: MergeMethod, parameters: Mapping[str, Any], order: Sequence[int]
) -> dict[str, Any]:
    """The parameters, with those that are one per member in the order of the plan's members."""
    found = dict(parameters)
    for name in method.per_member:
        value = found.get(name)
        if isinstance(value, list):
            if len(value) != len(order):
                raise InvalidParameter(
                    f"The {name!r} parameter of {method.name} has {len(value)} values for "
                    f"{len(order)} models. Give one number, or one per model."
                )
            found[name] = [value[i] for i in order]
    return found


def _refuse_packed(checkpoints: Sequence[Checkpoint]) -> None:
    lines = [
        f"{shown(name)} of {shown(checkpoint.id)}: {scheme}"
        for checkpoint in checkpoints
        for name, scheme in packed(checkpoint.specs()).items()
    ]
    if lines:
        raise CheckpointError(
            f"{counted(len(lines), 'tensor')} cannot be merged, since the numbers are packed:\n"
            f"{listing(lines)}\nDequantise the models first, merge, and quantise the result."
        )


def _used_stats(
    method: MergeMethod,
    stats: Mapping[str, Sequence[Checkpoint]],
    checkpoints: Sequence[Checkpoint],
) -> set[str]:
    """The kinds of statistics that the method takes; those that it needs must be there."""
    kinds = (method.needs | method.optional) - {"base"}
    missing = sorted((method.needs - {"base"}) - stats.keys())
    if missing:
        raise MissingInput(
            f"{method.name} needs statistics of the models on data: {', '.join(missing)}. "
            f"Make one file per model with 'alloykit stats {missing[0]}' and pass them as "
            f"stats={{{missing[0]!r}: [...]}}, in the order of the models."
        )
    for kind in kinds & stats.keys():
        if len(stats[kind]) != len(checkpoints):
            raise MissingInput(
                f"{len(stats[kind])} {kind} statistics were given for {len(checkpoints)} models. "
                "Give one per model, in their order."
            )
    if "fisher" in kinds & stats.keys():
        _check_shapes(stats["fisher"], checkpoints)
    return set(kinds & stats.keys())


def _check_shapes(stats: Sequence[Checkpoint], checkpoints: Sequence[Checkpoint]) -> None:
    lines = []
    for own, checkpoint in zip(stats, checkpoints, strict=True):
        specs = checkpoint.specs()
        lines += [
            f"{shown(name)}: {list(spec.shape)} in {own.id}, and in {checkpoint.id} "
            f"{list(specs[name].shape) if name in specs else 'missing'}"
            for name, spec in own.specs().items()
            if name not in specs or specs[name].shape != spec.shape
        ]
    if lines:
        raise MismatchedCheckpoints(
            f"{counted(len(lines), 'statistic')} do not fit the models:\n{listing(lines)}\n"
            "Give them in the order of the models, each made from its own model."
        )


def _require_members(
    method: MergeMethod, checkpoints: Sequence[Checkpoint], base: Checkpoint | None
) -> None:
    count, least, most = len(checkpoints), method.members.start, method.members.stop - 1
    if count == 0:
        raise MissingInput(f"{method.name} was given no models to merge.")
    if not least <= count <= most:
        takes = f"exactly {least}" if least == most else f"{least} to {most}"
        models, were = "model" if most == 1 else "models", "was" if count == 1 else "were"
        raise MissingInput(f"{method.name} takes {takes} {models}; {count} {were} given.")
    if "base" in method.needs and base is None:
        raise MissingInput(
            f"{method.name} needs a base, and none was given. "
            "Pass base=PATH: the checkpoint that the models were fine-tuned from."
        )
    for name, times in Counter(checkpoint.id for checkpoint in checkpoints).items():
        alike = {id(c): c for c in checkpoints if c.id == name}.values()
        if len(alike) > 1 and len({content_digest(checkpoint) for checkpoint in alike}) > 1:
            raise CheckpointError(
                f"{times} different models are named {name!r}. "
                "Give a mapping from names of their own to models."
            )


def _steps(
    members: Sequence[Checkpoint],
    base: Checkpoint | None,
    dtype: torch.dtype | None,
    by_tensor: _ByTensor,
) -> list[Step]:
    every = [checkpoint.specs() for checkpoint in members]
    ties = _common_ties([*every, *([base.specs()] if base else [])])
    steps = []
    for name, spec in every[0].items():
        dtypes = [specs[name].dtype for specs in every]
        output = promoted(dtypes)
        action: Action = "merge"
        if name in ties:
            action = "tie"
        elif not is_averaged(output):
            action = "maximum" if takes_maximum(name) else "copy"
        if dtype is not None and is_averaged(output) and output.is_complex == dtype.is_complex:
            output = dtype
        own = by_tensor.at(name) if action == "merge" else {}
        steps.append(Step(name, action, spec.shape, str(output)[6:], ties.get(name, ""), **own))
    return steps


def _common_ties(every: Sequence[Mapping[str, TensorSpec]]) -> dict[str, str]:
    """Name -> the earlier name that it shares its place with, in every member and the base."""
    ties: dict[str, str] = {}
    first_at: dict[tuple[tuple[str, tuple[int, ...]], ...], str] = {}
    for name in every[0]:
        key = tuple((specs[name].place, specs[name].shape) for specs in every)
        if key in first_at:
            ties[name] = first_at[key]
        else:
            first_at[key] = name
    return ties
