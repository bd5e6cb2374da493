"""Run a plan: read, merge, round once, and hand on one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.writing import write_safetensors
from alloykit.errors import CheckpointError, listing
from alloykit.execution.plan import Plan, Step
from alloykit.numerics import compute_dtype, promoted, unusable_values
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
    Infinities are copied where all members agree on the whole tensor (masks); otherwise
    infinities and NaN are collected over the *whole* model and raised at the end, so that one
    error names all of them.

    Args:
        plan: What ``plan_merge`` decided.
        members: The checkpoints that it was planned from, in any order.
        base: The base that it was planned from.
        progress: Called before every step.

    Raises:
        CheckpointError: NaN or Inf in tensors to be averaged, or integer tensors that differ.
    """
    by_id = {checkpoint.id: checkpoint for checkpoint in members}
    ordered = [by_id[name] for name in plan.members]
    method = plan.build_method()
    wrong: list[str] = []
    done: dict[str, Tensor] = {}
    tied = {step.tied_to for step in plan.steps if step.tied_to}
    for done_so_far, step in enumerate(plan.steps):
        if progress is not None:
            progress(step.name, done_so_far, len(plan.steps))
        if step.action == "tie":
            tensor = done[step.tied_to]
        else:
            tensor = _step(step, plan, method, ordered, base, wrong)
        if step.name in tied:
            done[step.name] = tensor
        yield step.name, tensor
    if wrong:
        raise CheckpointError(
            f"The models cannot be merged: {len(wrong)} tensors hold values that have no average.\n"
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


def _step(
    step: Step,
    plan: Plan,
    method: MergeMethod,
    members: Sequence[Checkpoint],
    base: Checkpoint | None,
    wrong: list[str],
) -> Tensor:
    tensors = [checkpoint.read(step.name) for checkpoint in members]
    output: torch.dtype = getattr(torch, step.dtype)
    if step.action != "merge":
        return _resolved(step, tensors, plan.members, output, wrong)
    from_base = base.read(step.name) if base is not None else None
    every = [*tensors, *([from_base] if from_base is not None else [])]
    names = [*plan.members, *([plan.base or "base"] if from_base is not None else [])]
    bad = [
        (n, problem) for n, t in zip(names, every, strict=True) if (problem := unusable_values(t))
    ]
    if bad:
        if not _equal_infinities(every):
            wrong.extend(f"{step.name}   {member}: {problem}" for member, problem in bad)
        return tensors[0].to(output)
    compute = compute_dtype(promoted(t.dtype for t in every))
    group = TensorGroup(
        name=step.name,
        members=plan.members,
        tensors=tuple(tensor.to(compute) for tensor in tensors),
        weights=plan.weights,
        base=None if from_base is None else from_base.to(compute),
        seed=plan.seed,
    )
    return method.merge(group, None).to(output)


def _resolved(
    step: Step,
    tensors: Sequence[Tensor],
    members: Sequence[str],
    output: torch.dtype,
    wrong: list[str],
) -> Tensor:
    """Integer and boolean tensors: the common value, the stated rule, or a line in ``wrong``."""
    same = [tensor.to(output) for tensor in tensors]
    if step.action == "maximum":
        return torch.stack(same).amax(dim=0)
    different = [m for m, t in zip(members, same, strict=True) if not torch.equal(t, same[0])]
    if different:
        wrong.append(
            f"{step.name}   {step.dtype} values differ between {members[0]} and "
            f"{', '.join(different)}; integers are never averaged"
        )
    return same[0].clone()


def _equal_infinities(tensors: Sequence[Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def as_checkpoint(tensors: Mapping[str, Tensor], name: str) -> MemoryCheckpoint:
    """A merged state dict as a checkpoint of that name."""
    return MemoryCheckpoint(tensors, id=name)
