"""What a file says about how it was made, as metadata of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any


def provenance(
    *,
    inputs: Mapping[str, str],
    method: str,
    parameters: Mapping[str, Any],
    weights: Mapping[str, float] | None,
    notes: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The record of a combination: every value is JSON, keys are sorted, nothing depends on time.

    Args:
        inputs: Name of each member -> its digest.
        method: Registered name of the method.
        parameters: What it was built with.
        weights: Name of each member -> its weight, or None where the method takes none.
        notes: Remarks that a later reader needs.
        recipe: What makes the same file again from the inputs.

    Raises:
        TypeError: A parameter cannot be written as JSON.
        ValueError: A number is NaN or infinite.

    Example:
        >>> record = provenance(
        ...     inputs={"a": "sha256:1"}, method="linear", parameters={}, weights={"a": 1.0}
        ... )
        >>> record["method"], record["inputs"]
        ('"linear"', '{"a": "sha256:1"}')
    """
    record = {
        "alloykit": metadata.version("alloykit"),
        "inputs": dict(inputs),
        "method": method,
        "notes": list(notes),
        "parameters": dict(parameters),
        "weights": None if weights is None else {m: float(w) for m, w in weights.items()},
        **({} if recipe is None else {"recipe": dict(recipe)}),
    }
    return {
        key: json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        for key, value in record.items()
    }
