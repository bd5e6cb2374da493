"""A model's outputs on a split as scores: one number a metric."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from alloykit.data.examples import Examples
from alloykit.evaluation.metrics import Metric, metric
from alloykit.evaluation.predicting import detect_kind, log_probabilities
from alloykit.types import Task


def scores(
    outputs: Tensor, examples: Examples, task: Task, metrics: Sequence[str | Metric] | None = None
) -> dict[str, float]:
    """Metrics of a model's outputs on a split, by name.

    Args:
        outputs: Logits, log-probabilities, probabilities or values of all examples.
        examples: The split.
        task: What the outputs are for.
        metrics: Which; None: accuracy and log loss, or squared error and R².

    Example:
        >>> import torch
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples(([[0.0], [0.0]], [0, 1]), "test")
        >>> scores(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), split, "classification", ["accuracy"])
        {'accuracy': 1.0}
    """
    if task != "regression":
        outputs = log_probabilities(outputs, detect_kind(outputs, task))
    elif outputs.shape != examples.targets.shape:
        outputs = outputs.reshape(examples.targets.shape)
    wanted = metrics or (["mse", "r2"] if task == "regression" else ["accuracy", "log_loss"])
    found = [metric(each) for each in wanted]
    return {each.name: float(each.value(outputs, examples.targets)) for each in found}
