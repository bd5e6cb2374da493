"""Whether a snapshot is of the run that is to go on: everything that differs, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alloykit.checkpoints.strict_json import differing
from alloykit.checkpoints.wording import shown
from alloykit.errors import InvalidParameter, OutputExists, listing


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a JSON file gives them back.

    Raises:
        InvalidParameter: Some are no JSON values.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidParameter(
            f"The identity of a run must be JSON values (text, numbers, lists, mappings): {error}."
        ) from error
    return found


def check_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the snapshot of another run.

    Raises:
        OutputExists: Settings differ; all differences are listed.
    """
    lines = [
        f"{shown('.'.join(path))}   snapshot: {shown(one)}   now: {shown(other)}"
        for path, one, other in differing(saved, now, absent="missing")
    ]
    if lines:
        raise OutputExists(
            f"{shown(str(path))} is the snapshot of another run:\n{listing(lines)}\n"
            "Train with the same settings on the same data to go on from it; give another folder; "
            "or delete it."
        )
