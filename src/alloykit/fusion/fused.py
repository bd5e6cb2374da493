"""A fusion together with the report of how it was made and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alloykit.fusion.checking import Check
from alloykit.fusion.module import Fusion
from alloykit.fusion.reliance import Reliance
from alloykit.fusion.reliance_picture import picture


@dataclass(frozen=True)
class FusionReport:
    """How a fusion was made, and what it is worth.

    Attributes:
        head: The head as one would type it: "concat(pull=3)".
        examples: How many examples the head was trained on.
        check: Scores beside the plain mean's, on rows the head was not trained on.
        reliance: Which member is believed for which class, on the same rows.
        chosen: What was chosen while fitting, such as "pull" or "epochs".
        history: How the training went, epoch by epoch; () for heads that are solved.
        notes: Warnings that belong next to the numbers: leaks, thin classes.
        seconds: What it took, members' predictions and check included.
    """

    head: str
    examples: int
    check: Check
    reliance: Reliance
    chosen: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """One sentence: whether the head beats the plain mean."""
        return f"{self.head} {self.check.verdict}."

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "head": self.head,
            "examples": self.examples,
            "check": self.check.to_json(),
            "reliance": self.reliance.to_json(),
            "chosen": dict(self.chosen),
            "history": [dict(epoch) for epoch in self.history],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "verdict": self.verdict,
        }

    def picture(self, path: str | Path, *, what: Literal["loss", "attention"] = "loss") -> Path:
        """Draw which member is believed for which class; see ``reliance_picture.picture``."""
        return picture(self.reliance, path, what=what)

    def __str__(self) -> str:
        check = self.check
        lines = [self.verdict]
        for name, score in check.scores.items():
            line = f"  {name} {score:.4f}"
            if name in check.mean:
                gain = check.improvement[name]
                line += (
                    f", plain mean {check.mean[name]:.4f}, "
                    f"better by {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
                )
            lines.append(line)
        lines.append(
            f"  {check.how} on {check.examples} examples; trained on {self.examples} "
            f"in {self.seconds:.1f} s"
        )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


class Fused(Fusion):
    """What ``alloykit.fuse`` returns: a fusion with its ``report``.

    Attributes:
        report: How it was made, and what it is worth.
    """

    report: FusionReport


def reported(fusion: Fusion, report: FusionReport) -> Fused:
    """The fusion with its report; members and head shared."""
    fused = fusion.remade(Fused)
    fused.report = report
    return fused
