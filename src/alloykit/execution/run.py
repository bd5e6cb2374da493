"""Run a plan in memory: read, merge, round once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.inputs import Inputs
from alloykit.execution.limits import Limits
from alloykit.execution.plan import Plan, Step
from alloykit.threads import one_thread_each
from alloykit.types import Checkpoint

RANGE = 1 << 20
"""Elements that one thread computes at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what comes next, how many bytes are done, and how many in all."""


def merge_in_memory(
    plan: Plan,
    members: Sequence[Checkpoint],
    base: Checkpoint | None = None,
    *,
    stats: Mapping[str, Sequence[Checkpoint]] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The whole result of a plan as a state dict; tied names share one tensor.

    Args:
        plan: What ``plan_merge`` decided.
        members: The checkpoints that it was planned from, in any order.
        base: The base that it was planned from.
        stats: Kind of statistics -> one checkpoint per member, in the order of ``members``.
        limits: Threads and device.
        progress: Called before every tensor.

    Raises:
        MissingInput: A checkpoint that the plan names is not among those given.
        CheckpointError: NaN or Inf in tensors to be averaged, integer tensors that differ, or a
            result outside the range of its dtype; all are listed.
    """
    limits = limits or Limits()
    inputs = Inputs.of(plan, members, base, stats)
    arithmetic = Arithmetic(plan, inputs, limits.device)
    total = sum(spec.nbytes for spec in plan.specs().values())
    merged: dict[str, Tensor] = {}
    done = 0
    with (
        one_thread_each(),
        ThreadPoolExecutor(
            limits.chosen_threads(arithmetic), initializer=partial(torch.set_num_threads, 1)
        ) as pool,
    ):
        for step in plan.steps:
            if progress is not None:
                progress(step.name, done, total)
            if step.action == "tie":
                merged[step.name] = merged[step.tied_to]
            else:
                merged[step.name] = _tensor(arithmetic, step, pool)
            done += merged[step.name].nbytes
    inputs.check_unchanged()
    arithmetic.problems.require_none()
    return merged


def _tensor(arithmetic: Arithmetic, step: Step, pool: ThreadPoolExecutor) -> Tensor:
    out = torch.empty(step.shape, dtype=getattr(torch, step.dtype))
    flat = out.reshape(-1)
    if step.action != "merge":
        arithmetic.resolve(step, 0, flat)
        return out
    merged = arithmetic.merged(step)
    whole = merged.whole(RANGE)
    state = merged.prepare(whole=whole)

    def fill(start: int) -> None:
        merged.fill(start, flat[start : start + RANGE], state, whole=whole)

    starts = range(0, flat.numel(), RANGE)
    if len(starts) == 1:
        fill(0)
    else:
        list(pool.map(fill, starts))
    return out
