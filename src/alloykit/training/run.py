"""How far a training run is, and what it would leave behind if it ended now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from alloykit.errors import DataError
from alloykit.training.history import Epoch, History, extended
from alloykit.training.settings import Training
from alloykit.training.weights import put_back


@dataclass
class Run:
    """How far a run is.

    Attributes:
        training: Its settings.
        history: The finished epochs.
        kept: The best weights so far: a copy.
        step: Optimizer steps taken.
        summed: Σ loss of this epoch so far, over ``scored`` targets.
        scored: Number of these targets.
        seconds: Time spent on this epoch before an interruption.
    """

    training: Training
    history: History
    kept: dict[str, Tensor]
    step: int = 0
    summed: float = 0.0
    scored: int = 0
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left, or no patience."""
        return bool(self.history.stopped) or len(self.history.epochs) >= self.training.epochs

    @property
    def mean(self) -> float:
        """Mean loss of this epoch so far."""
        return self.summed / max(self.scored, 1)

    def count(self, mean: float, scored: int) -> None:
        """Count one step."""
        self.step += 1
        self.summed += mean * scored
        self.scored += scored

    def finish(self, epoch: Epoch, weights: Mapping[str, Tensor]) -> None:
        """Add an epoch; keep its weights where it is the best."""
        history = replace(self.history, steps=self.step)
        self.history = extended(history, epoch, self.training.patience)
        if self.history.best == epoch.number:
            put_back(self.kept, weights)
        self.summed, self.scored, self.seconds = 0.0, 0, 0.0

    def diverged(self, weights: Mapping[str, Tensor], what: str, step: int) -> DataError:
        """Put the best weights back; the error says where it happened and how to go on."""
        put_back(weights, self.kept)
        held = f"of epoch {self.history.best}" if self.history.best else "that it started with"
        clip = "" if self.training.clip_norm else ", clip the gradients (clip_norm=1)"
        return DataError(
            f"{what} in epoch {len(self.history.epochs) + 1} of {self.training.epochs}, step "
            f"{step}. Lower learning_rate ({self.training.learning_rate:g}){clip}, or look at the "
            f"data. The model holds the weights {held}."
        )
