"""What a merge did, tensor by tensor, as JSON beside the result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import atomic_write
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.plan import Step
from alloykit.threads import one_thread_each
from alloykit.types import TensorGroup


def write_manifest(arithmetic: Arithmetic, output: Path, *, overwrite: bool) -> Path:
    """Write OUTPUT.manifest.json: norms and cosines of task vectors, sign conflicts, changes.

    Task vectors are the members less the base; without a base, less their plain mean.

    Args:
        arithmetic: What computed the result.
        output: The finished result.
        overwrite: Whether an existing manifest may be replaced.
    """
    path = output.parent / f"{output.name}.manifest.json"
    tensors = {}
    with one_thread_each():
        for step in arithmetic.plan.steps:
            tensors[step.name] = _entry(arithmetic, step)
    plan = arithmetic.plan
    document = {
        "output": output.name,
        "metadata": dict(open_checkpoint(output).metadata),
        "members": list(plan.members),
        "base": plan.base,
        "task_vectors_from": "base" if plan.base is not None else "mean of the members",
        "tensors": tensors,
    }
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False).encode())
    return path


def _entry(arithmetic: Arithmetic, step: Step) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "action": step.action,
        "shape": list(step.shape),
        "dtype": step.dtype,
    }
    if step.action == "tie":
        entry["tied_to"] = step.tied_to
    if step.action != "merge":
        return entry
    scan = arithmetic.merged(step).scan()
    total = scan.total(_statistics)
    count = len(scan.members)
    gram = total[: count * count].reshape(count, count)
    return {
        **entry,
        "members": list(scan.members),
        "norms": [round(math.sqrt(max(0.0, value)), 9) for value in gram.diagonal().tolist()],
        "cosines": _cosines(gram),
        "sign_conflicts": round(float(total[-2]) / max(1, scan.numel), 6),
        "unchanged": round(float(total[-1]) / max(1, scan.numel), 6),
    }


def _statistics(group: TensorGroup) -> Tensor:
    """Inner products of task vectors; elements whose signs conflict; elements that none changes."""
    tensors = torch.stack([tensor.reshape(-1) for tensor in group.tensors])
    origin = tensors.mean(0) if group.base is None else group.base.reshape(-1)
    deltas = (tensors - origin).double()
    up, down = (deltas > 0).any(0), (deltas < 0).any(0)
    counts = torch.stack([(up & down).sum(), (~up & ~down).sum()]).double()
    return torch.cat([(deltas @ deltas.T).reshape(-1), counts])


def _cosines(gram: Tensor) -> list[list[float | None]]:
    """Cosines between the task vectors; None where one of them is zero."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return [
        [
            round(float(gram[i, j] / (norms[i] * norms[j])), 6) if norms[i] * norms[j] else None
            for j in range(len(gram))
        ]
        for i in range(len(gram))
    ]
