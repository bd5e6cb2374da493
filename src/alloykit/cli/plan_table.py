"""``alloykit merge --dry-run``: what would be done to which tensor, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alloykit.cli.console import print_json, print_table

if TYPE_CHECKING:
    from alloykit.api.planning import Job
    from alloykit.execution.plan import Plan, Step

NAMED = 3
REASONS = {
    "merge": "by {method}",
    "copy": "not floating point: must be the same in every model, and is copied",
    "maximum": "a counter: the largest is taken",
    "tie": "the same tensor as another: written once",
}


def show_plan(
    arguments: Mapping[str, Any],
    memory: str | None,
    threads: int | None,
    device: str,
    *,
    as_json: bool,
) -> None:
    """Plan a merge from headers alone, and print what it would do.

    Args:
        arguments: Those of ``alloykit.merge`` that say what is computed.
        memory: As ``--memory``.
        threads: As ``--threads``.
        device: As ``--device``.
        as_json: Print the whole plan as JSON.
    """
    from alloykit.api.planning import planned

    job = planned(**arguments)
    takes = costs(job, memory, threads, device)
    if as_json:
        print_json({**takes, "plan": plan_content(job.plan)})
        return
    plan = job.plan
    print_table(f"Plan: {plan.method}", _MODELS, list(models(job)))
    print_table("What happens to which tensor", _TENSORS, list(tensors(plan)))
    varying = list(variations(plan))
    if varying:
        print_table("What differs by tensor", ["", "values", "tensors"], varying)
    given = [f"{key} {value}" for key, value in plan.parameters.items() if value is not None]
    print(f"Parameters: {', '.join(given) or 'none'}")
    for label, value in shown_costs(takes):
        print(f"{label}: {value}")


_MODELS = ["model", "weight", "dtypes", "size", "what is done with it"]
_TENSORS = ["", "tensors", "elements", "why", "such as"]


def plan_content(plan: Plan) -> Any:
    """The plan as JSON says it."""
    import json

    return json.loads(plan.to_json())


def models(job: Job) -> Iterator[tuple[object, ...]]:
    """A row for each member and the base."""
    from alloykit.checkpoints.wording import amount

    weights = dict(zip(job.plan.members, job.plan.weights, strict=True))
    every = [*job.checkpoints, *([job.origin] if job.origin else [])]
    for checkpoint in every:
        specs = checkpoint.specs().values()
        dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs})
        size = amount(sum({spec.place: spec.nbytes for spec in specs}.values()))
        is_base = checkpoint is job.origin
        weight = None if is_base else weights.get(checkpoint.id)
        shown = "–" if weight is None else f"{weight:g}"
        yield checkpoint.id, shown, ", ".join(dtypes), size, _role(job, weight, is_base=is_base)


def _role(job: Job, weight: float | None, *, is_base: bool) -> str:
    if is_base:
        return "base"
    varies = any(step.weights is not None for step in job.plan.steps)
    return "not read: its weight is zero" if weight == 0 and not varies else "merged"


def tensors(plan: Plan) -> Iterator[tuple[object, ...]]:
    """A row for each kind of action."""
    for action, reason in REASONS.items():
        steps = [step for step in plan.steps if step.action == action]
        if steps:
            names = ", ".join(step.name for step in steps[:NAMED])
            more = f" and {len(steps) - NAMED} more" if len(steps) > NAMED else ""
            elements = sum(math.prod(step.shape) for step in steps)
            reason = reason.format(method=plan.method)
            yield action, len(steps), f"{elements:,}", reason, names + more


def variations(plan: Plan) -> Iterator[tuple[object, ...]]:
    """A row for each parameter, or the weights, that differ from tensor to tensor."""
    merged = [step for step in plan.steps if step.action == "merge"]
    names = dict.fromkeys(name for step in merged for name in step.parameters)
    for name in names:
        values = [step.parameters.get(name, plan.parameters.get(name)) for step in merged]
        if all(isinstance(value, list | tuple) for value in values):
            for member, own in zip(plan.members, zip(*values, strict=True), strict=True):
                yield f"{name} of {member}", _range(own), len(own)
        else:
            yield name, _range(values), len(values)
    for index, member in enumerate(plan.members):
        values = [(step.weights or plan.weights)[index] for step in merged]
        if any(value != values[0] for value in values):
            yield f"weight of {member}", _range(values), len(values)


def _range(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{len({str(value) for value in values})} different"


def costs(job: Job, memory: str | None, threads: int | None, device: str) -> dict[str, Any]:
    """Bytes read and written, memory, threads."""
    from alloykit.execution.limits import Limits, needed, parsed_bytes

    limits = Limits(parsed_bytes(memory, "memory"), threads, device=device)
    arithmetic = job.arithmetic()
    chosen, block = limits.fitted(arithmetic)
    written = [step for step in job.plan.steps if step.action != "tie"]
    every = [*job.checkpoints, *([job.origin] if job.origin else [])]
    return {
        "bytes_read": sum(sum(s.nbytes for s in _places(c.specs()).values()) for c in every),
        "surveys": job.plan.build_method().survey is not None,
        "bytes_written": sum(_nbytes(step) for step in written),
        "dtypes": sorted({step.dtype for step in written}),
        "memory": needed(arithmetic, chosen, block),
        "threads": chosen,
        "block": block,
    }


def shown_costs(takes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The costs in words."""
    from alloykit.checkpoints.wording import amount

    again = ", and once more before that: the method looks at whole tensors first"
    yield "Reads", amount(takes["bytes_read"]) + (again if takes["surveys"] else "")
    yield "Writes", f"{amount(takes['bytes_written'])} as {', '.join(takes['dtypes'])}"
    yield "Memory", f"about {amount(takes['memory'])} for {takes['threads']} threads"


def _places(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {spec.place: spec for spec in specs.values()}


def _nbytes(step: Step) -> int:
    import torch

    dtype: torch.dtype = getattr(torch, step.dtype)
    return math.prod(step.shape) * dtype.itemsize
