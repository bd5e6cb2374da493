"""What a round is judged by: the server's model on validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from torch import nn

from alloykit.data.examples import Examples
from alloykit.errors import DataError
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.predicting import detect_kind, evaluating, log_probabilities, predict
from alloykit.training.scoring import Validation
from alloykit.types import Task

METRICS: dict[Task, tuple[str, str]] = {
    "classification": ("accuracy", "log_loss"),
    "regression": ("rmse", "mse"),
    "tokens": ("accuracy", "log_loss"),
}
"""Score and loss of each task."""

Measured = tuple[float | None, float | None]


@dataclass(frozen=True)
class Judge:
    """How models are scored after each round.

    Attributes:
        measure: ``model -> (score, loss)``.
        metric: Name of the score; "" where nothing is measured.
        higher_is_better: Its direction.
    """

    measure: Callable[[nn.Module], Measured]
    metric: str = ""
    higher_is_better: bool = False

    def mean(self, models: Iterable[nn.Module]) -> Measured:
        """The mean over several models."""
        found = [self.measure(model) for model in models]
        scores = [score for score, _ in found if score is not None]
        losses = [loss for _, loss in found if loss is not None]
        return fmean(scores) if scores else None, fmean(losses) if losses else None


def judge(validation: Examples | Validation | None, task: Task) -> Judge:
    """The judge of a validation split (the task's metric and loss), or of a measure.

    A model whose outputs are NaN scores NaN, which is never the best.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples(([[1.0, 0.0], [0.0, 1.0]], [0, 0]), "validation")
        >>> judge(split, "classification").measure(nn.Identity())[0]
        0.5
    """
    if validation is None:
        return Judge(lambda model: (None, None))
    if isinstance(validation, Validation):
        given = validation

        def measured(model: nn.Module) -> Measured:
            with evaluating(model):
                return float(given.measure(model)), None

        return Judge(measured, given.metric, given.higher_is_better)
    names = METRICS[task]
    score, loss = (metric(name, task=task) for name in names)
    examples = validation

    def measure(model: nn.Module) -> Measured:
        try:
            outputs = predict(model, examples)
        except DataError:
            return float("nan"), float("nan")
        if task == "regression":
            outputs = outputs.reshape(examples.targets.shape)
        else:
            outputs = log_probabilities(outputs, detect_kind(outputs, task))
        return (
            float(score.value(outputs, examples.targets)),
            float(loss.value(outputs, examples.targets)),
        )

    return Judge(measure, names[0], score.higher_is_better)
