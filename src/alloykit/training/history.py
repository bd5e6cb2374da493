"""What happened in a training run, epoch by epoch, as data that a report can plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from alloykit.checkpoints.wording import counted


@dataclass(frozen=True)
class Epoch:
    """One pass over the data.

    Attributes:
        number: From 1.
        loss: Mean training loss over the examples, measured while the weights were changing.
        validation: The validation score after it; None where there is no validation.
        learning_rate: Step size of its last step.
        seconds: Wall time, validation included.
    """

    number: int
    loss: float
    validation: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class History:
    """How a training run went.

    Attributes:
        epochs: In order.
        metric: What ``Epoch.validation`` measures; "" where there is no validation.
        higher_is_better: Its direction.
        best: Number of the epoch whose weights were kept; 0 before the first is finished.
        stopped: Why training ended before its last epoch; "" where it did not.
        steps: Optimizer steps taken.
    """

    epochs: tuple[Epoch, ...] = ()
    metric: str = ""
    higher_is_better: bool = False
    best: int = 0
    stopped: str = ""
    steps: int = 0

    @property
    def losses(self) -> list[float]:
        """The training loss of each epoch."""
        return [epoch.loss for epoch in self.epochs]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is not finite becomes text ("nan", "inf").

        Example:
            >>> history = History((Epoch(1, 0.5, float("inf"), 0.002, 1.5),), metric="loss")
            >>> History.of(history.to_json()) == history
            True
        """
        epochs = [
            {name: _written(value) for name, value in asdict(epoch).items()}
            for epoch in self.epochs
        ]
        return {**asdict(self), "epochs": epochs}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> History:
        """The history that ``to_json`` wrote."""
        epochs = tuple(
            Epoch(**{name: _read(value) for name, value in epoch.items()})
            for epoch in saved["epochs"]
        )
        return cls(**{**saved, "epochs": epochs})


def better(score: float, best: float | None, higher_is_better: bool) -> bool:
    """Whether a score beats the best before it: ties keep the earlier, NaN is the worst of all.

    Example:
        >>> better(0.5, 0.5, False), better(0.4, 0.5, False), better(0.4, float("nan"), True)
        (False, True, True)
    """
    if best is None:
        return True
    if math.isnan(score) or math.isnan(best):
        return math.isnan(best) and not math.isnan(score)
    return score > best if higher_is_better else score < best


def extended(history: History, epoch: Epoch, patience: int | None) -> History:
    """The history with one more epoch: whether its weights are the best, and whether to stop."""
    best = history.epochs[history.best - 1].validation if history.best else None
    score = epoch.validation
    kept = score is None or better(score, best, history.higher_is_better)
    number = epoch.number if kept else history.best
    waited = epoch.number - number
    stopped = ""
    if patience is not None and waited >= patience:
        stopped = f"no better {history.metric} in {counted(waited, 'epoch')}"
    return replace(history, epochs=(*history.epochs, epoch), best=number, stopped=stopped)


def told(epoch: int, epochs: int, loss: float, history: History) -> str:
    """One line about a running epoch, with the latest validation score.

    Example:
        >>> told(3, 20, 0.41234, History((Epoch(2, 0.5, 0.9312, 0.1, 1.0),), "accuracy"))
        'epoch 3 of 20, loss 0.4123, accuracy 0.9312'
    """
    score = history.epochs[-1].validation if history.epochs else None
    latest = "" if score is None else f", {history.metric} {score:.4g}"
    return f"epoch {epoch} of {epochs}, loss {loss:.4g}{latest}"


def _written(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
