"""Run a plan: read, merge, round once, and hand on one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.wording import counted
from alloykit.checkpoints.writing import write_safetensors
from alloykit.errors import CheckpointError, MissingInput, listing
from alloykit.execution.plan import Plan, Step
from alloykit.numerics import compute_dtype, promoted, same_values, unusable_values
from alloykit.types import Checkpoint, MergeMethod, TensorGroup

Progress = Callable[[str, int, int], None]
"""Called before each tensor with its name, how many are done, and of how many."""


def run(
    plan: Plan,
    members: Sequence[Checkpoint],
    base: Checkpoint | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the merged tensors by name, in the plan's order; memory holds one name at a time.

    Arithmetic is in float32 (float64 where a member is), with one rounding to the output dtype.
    Infinities are copied where all members agree on the whole tensor (masks). Otherwise
    infinities and NaN, in a member or made by the method or the output dtype, are collected over
    the *whole* model and raised at the end, so that one error names all of them.

    A member of weight zero is not read, unless the order of the members carries meaning; then it
    is, and its values do not matter.

    Args:
        plan: What ``plan_merge`` decided.
        members: The checkpoints that it was planned from, in any order.
        base: The base that it was planned from.
        progress: Called before every step.

    Raises:
        MissingInput: A checkpoint that the plan names is not among those given.
        CheckpointError: NaN or Inf in tensors to be averaged, integer tensors that differ, or a
            result outside the range of its dtype.
    """
    method = plan.build_method()
    present = _present(plan, method, members, base)
    origin = base if plan.base is not None else None
    wrong: list[str] = []
    done: dict[str, Tensor] = {}
    tied = {step.tied_to for step in plan.steps if step.tied_to}
    for done_so_far, step in enumerate(plan.steps):
        if progress is not None:
            progress(step.name, done_so_far, len(plan.steps))
        if step.action == "tie":
            tensor = done[step.tied_to]
        else:
            tensor = _step(step, plan, method, present, origin, wrong)
        if step.name in tied:
            done[step.name] = tensor
        yield step.name, tensor
    if wrong:
        raise CheckpointError(
            f"The models cannot be merged: {counted(len(wrong), 'value problem')}.\n"
            f"{listing(wrong)}\n"
            "Leave out the models that diverged, or repair these tensors."
        )


def merge_in_memory(
    plan: Plan,
    members: Sequence[Checkpoint],
    base: Checkpoint | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The whole result of a plan as a state dict; tied names share one tensor."""
    return dict(run(plan, members, base, progress=progress))


def merge_to_file(
    plan: Plan,
    members: Sequence[Checkpoint],
    path: Path,
    base: Checkpoint | None = None,
    *,
    metadata: Mapping[str, str],
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Run a plan straight into a safetensors file that appears whole or not at all."""
    write_safetensors(
        path,
        plan.specs(),
        run(plan, members, base, progress=progress),
        metadata=metadata,
        overwrite=overwrite,
        inputs=inputs,
    )
    return path


@dataclass(frozen=True)
class _Present:
    """The members that take part, in the plan's order."""

    checkpoints: tuple[Checkpoint, ...]
    weights: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(checkpoint.id for checkpoint in self.checkpoints)


def _present(
    plan: Plan, method: MergeMethod, members: Sequence[Checkpoint], base: Checkpoint | None
) -> _Present:
    by_id = {checkpoint.id: checkpoint for checkpoint in members}
    missing = [name for name in plan.members if name not in by_id]
    if plan.base is not None and base is None:
        missing.append(f"{plan.base} (the base)")
    if missing:
        raise MissingInput(f"The plan names checkpoints that were not given: {', '.join(missing)}.")
    pairs = [
        (by_id[name], weight)
        for name, weight in zip(plan.members, plan.weights, strict=True)
        if weight or method.ordered
    ]
    checkpoints, weights = zip(*pairs, strict=True)
    return _Present(checkpoints, weights)


def _step(
    step: Step,
    plan: Plan,
    method: MergeMethod,
    present: _Present,
    base: Checkpoint | None,
    wrong: list[str],
) -> Tensor:
    tensors = [_read(checkpoint, step) for checkpoint in present.checkpoints]
    output: torch.dtype = getattr(torch, step.dtype)
    counting = [
        (name, tensor)
        for name, tensor, weight in zip(present.names, tensors, present.weights, strict=True)
        if weight
    ]
    if step.action != "merge":
        return _resolved(step, counting, output, wrong)
    origin = _read(base, step) if base is not None else None
    if base is not None and origin is not None:
        counting.append((base.id, origin))
    bad = [f"{step.name}   {name}: {why}" for name, t in counting if (why := unusable_values(t))]
    if bad:
        if not same_values([tensor for _, tensor in counting]):
            wrong.extend(bad)
        return counting[0][1].to(output, copy=True)
    compute = compute_dtype(promoted(tensor.dtype for _, tensor in counting))
    group = TensorGroup(
        name=step.name,
        members=present.names,
        tensors=tuple(tensor.to(compute) for tensor in tensors),
        weights=present.weights,
        base=None if origin is None else origin.to(compute),
        seed=plan.seed,
    )
    result = method.merge(group, None).to(output)
    if why := unusable_values(result):
        wrong.append(f"{step.name}   the result in {step.dtype}: {why}")
    return result


def _read(checkpoint: Checkpoint, step: Step) -> Tensor:
    tensor = checkpoint.read(step.name)
    if tuple(tensor.shape) != step.shape:
        raise CheckpointError(
            f"{step.name} of {checkpoint.id} has the shape {list(tensor.shape)}; the plan was "
            f"made for {list(step.shape)}. Plan anew."
        )
    return tensor


def _resolved(
    step: Step,
    tensors: Sequence[tuple[str, Tensor]],
    output: torch.dtype,
    wrong: list[str],
) -> Tensor:
    """Integer and boolean tensors: the common value, the stated rule, or a line in ``wrong``."""
    if step.action == "maximum":
        # torch has no maximum of wide unsigned integers.
        return torch.stack([tensor.long() for _, tensor in tensors]).amax(dim=0).to(output)
    same = [(name, tensor.to(output)) for name, tensor in tensors]
    first, value = same[0]
    different = [name for name, tensor in same if not torch.equal(tensor, value)]
    if different:
        wrong.append(
            f"{step.name}   {step.dtype} values differ between {first} and "
            f"{', '.join(different)}; integers are never averaged"
        )
    return value.clone()


def as_checkpoint(tensors: Mapping[str, Tensor], name: str) -> MemoryCheckpoint:
    """A merged state dict as a checkpoint of that name."""
    return MemoryCheckpoint(tensors, id=name)
