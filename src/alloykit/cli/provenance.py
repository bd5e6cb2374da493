"""Read back what a file that alloykit wrote says about how it was made."""

from __future__ import annotations

import json
from typing import Any

from alloykit.types import Checkpoint

KEYS = ("method", "parameters", "weights", "inputs", "alloykit")


def recorded(checkpoint: Checkpoint) -> dict[str, Any]:
    """The provenance in a checkpoint's metadata, decoded; {} where there is none."""
    return {key: json.loads(checkpoint.metadata[key]) for key in KEYS if key in checkpoint.metadata}
