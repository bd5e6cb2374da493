"""Values that cannot be merged, collected while a plan runs and raised together at its end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing

Count = tuple[str, str, dict[str, int]]
"""Name of a tensor, where (a member, the result), and what is wrong with how many values."""


class Problems:
    """Values that cannot be merged, collected from all threads, so that one error names them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], Counter[str]] = {}
        self._added = 0

    def add(self, name: str, where: str, what: Mapping[str, int]) -> None:
        """Count what is wrong with a tensor: ``{"NaN": 2}``, or ``{"a reason": 0}``."""
        with self._lock:
            self._added += 1
            self._counts.setdefault((name, where), Counter()).update(what)

    def __len__(self) -> int:
        """Number of additions so far, so that a change can be noticed."""
        return self._added

    def lines(self) -> list[str]:
        """One line a tensor and member, sorted."""
        return [
            f"{shown(name)}   {where}: "
            + ", ".join(f"{n} {what}" if n else what for what, n in counts.items())
            for (name, where), counts in sorted(self._counts.items())
        ]

    def extend(self, counts: Iterable[Count]) -> None:
        """Add what another worker counted."""
        for name, where, what in counts:
            self.add(name, where, what)

    def counts(self) -> list[Count]:
        """Everything counted, to hand to another process."""
        return [(name, where, dict(what)) for (name, where), what in self._counts.items()]

    def require_none(self) -> None:
        """Raise CheckpointError with every line, if there is any."""
        lines = self.lines()
        if lines:
            raise CheckpointError(
                f"The models cannot be merged: {counted(len(lines), 'value problem')}.\n"
                f"{listing(lines)}\n"
                "Leave out the models that diverged, or repair these tensors."
            )


def unusable(values: Tensor) -> dict[str, int]:
    """How many values are NaN and how many infinite, leaving out zero counts."""
    wide = values if values.dtype.itemsize > 1 else values.float()
    counts = {"NaN": int(torch.isnan(wide).sum()), "Inf": int(torch.isinf(wide).sum())}
    return {what: count for what, count in counts.items() if count}
