"""mergekit's side of the accuracy table; run by `merge_accuracy.py` with mergekit's own Python.

Prints as JSON, method by method, the RMS error of its bfloat16 result against its float64 result,
over that of one correct rounding, and the share of results that are correctly rounded. Random
methods are left out: theirs draw other numbers for other dtypes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mergekit.merge_methods import registered_methods
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file
from torch import Tensor

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion")
WEIGHTED = ("linear", "nuslerp", "multislerp", "task_arithmetic", "ties", "breadcrumbs")
WEIGHTED += ("breadcrumbs_ties",)
TWO, ONE = ("slerp", "nuslerp", "nearswap"), ("passthrough",)
WITHOUT_BASE = ("linear", "karcher", "passthrough", "nuslerp", "multislerp")


def merged(method: str, tensors: dict[str, Tensor], parameters: dict[str, Any]) -> Tensor:
    """One merge through mergekit's function for state dicts."""
    count = 1 if method in ONE else 2 if method in TWO else 3
    names = [str(index) for index in range(count)]
    base = None if method in WITHOUT_BASE else "base"
    if method == "slerp":
        base = "0"
    if method == "nearswap":
        names = ["0"]
    if base == "base":
        names.append("base")
    models = {name: {"w": tensors[name]} for name in names}
    given = dict(parameters)
    if method in WEIGHTED:
        given["weight"] = {name: 1.0 for name in names if name != "base"}
    return merge_state_dicts(models, method, parameters=given, base=base)["w"]


def main() -> None:
    """All methods on one sample."""
    path, parameters = sys.argv[1], json.loads(sys.argv[2])
    tensors = load_file(path)
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    found = {}
    for method in sorted(each.spec.name for each in registered_methods()):
        if method in RANDOM:
            continue
        given = parameters.get(method, {})
        theirs, exact = (merged(method, each, given).double() for each in (tensors, wide))
        best = exact.bfloat16().double()
        unavoidable = float((best - exact).square().mean().sqrt())
        error = float((theirs - exact).square().mean().sqrt())
        found[method] = (
            error / unavoidable if unavoidable else 1.0 + error,
            float((theirs == best).double().mean()),
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
