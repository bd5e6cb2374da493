"""A merge as data: what will happen to each tensor, decided from headers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.matching import match
from alloykit.errors import CheckpointError, InvalidParameter, MissingInput
from alloykit.names import takes_maximum
from alloykit.numerics import is_averaged, normalised, promoted
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
    """

    name: str
    action: Action
    shape: tuple[int, ...]
    dtype: str
    tied_to: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that a merge will do: JSON in, JSON out, no tensor data.

    Attributes:
        method: Registered name.
        parameters: The method's parameters.
        members: Ids, in the order in which they are summed.
        weights: One per member, summing to one. A member of weight zero is matched, not read.
        base: Id of the base, or None where the method needs none.
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

    def build_method(self) -> MergeMethod:
        """The merge method that this plan names."""
        method: MergeMethod = merge_methods.build(self.method, **self.parameters)
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
        steps = tuple(Step(**{**s, "shape": tuple(s["shape"])}) for s in data.pop("steps"))
        for key in ("members", "weights"):
            data[key] = tuple(data[key])
        return cls(**data, steps=steps)


def plan_merge(
    checkpoints: Sequence[Checkpoint],
    method: str = "linear",
    parameters: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
    strict_weights: bool = False,
    base: Checkpoint | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Plan:
    """Decide what a merge does to every tensor, reading headers only.

    Members of order-free methods are put in the order of their ids, so that the result has the
    same bits for any order of the arguments.

    Args:
        checkpoints: The members. For ordered methods their order carries meaning.
        method: Registered name of the merge method.
        parameters: Its parameters.
        weights: One per member; None means uniform.
        strict_weights: Refuse weights that do not sum to one, instead of dividing by the sum.
        base: The checkpoint that the members were fine-tuned from; left out of the plan where the
            method needs none.
        dtype: Output dtype of averaged tensors of its kind, floating or complex; by default the
            members' own, promoted where they differ.
        seed: For methods that draw random numbers.

    Raises:
        MissingInput: Too few or too many members, or no base where one is needed.
        InvalidWeights: Weights that cannot be used.
        MismatchedCheckpoints: Names, shapes or kinds that differ; all are listed.
    """
    built: MergeMethod = merge_methods.build(method, **(parameters or {}))
    _require_members(built, checkpoints, base)
    chosen = normalised(weights, len(checkpoints), strict=strict_weights)
    if dtype is not None and not is_averaged(dtype):
        raise InvalidParameter(f"The output dtype must be floating point or complex. Got {dtype}.")
    pairs = list(zip(checkpoints, chosen, strict=True))
    if not built.ordered:
        pairs.sort(key=lambda pair: (pair[0].id, pair[1]))
    ordered = [checkpoint for checkpoint, _ in pairs]
    if "base" not in built.needs:
        base = None
    match([*ordered, *([base] if base else [])]).require("merged")
    present = [checkpoint for checkpoint, weight in pairs if weight]
    return Plan(
        method=method,
        parameters=dict(built.parameters),
        members=tuple(checkpoint.id for checkpoint in ordered),
        weights=tuple(weight for _, weight in pairs),
        base=base.id if base else None,
        seed=seed,
        steps=tuple(_steps(present, base, dtype)),
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
    members: Sequence[Checkpoint], base: Checkpoint | None, dtype: torch.dtype | None
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
        steps.append(Step(name, action, spec.shape, str(output)[6:], ties.get(name, "")))
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
