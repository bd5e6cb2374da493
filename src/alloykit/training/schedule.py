"""The step size over a run, as a factor on its peak."""

from __future__ import annotations

import math

from alloykit.training.settings import Training


def factor(training: Training, step: int, steps: int) -> float:
    """What the peak step size is multiplied with at a step (from 0) of ``steps``.

    It rises in a line over the first round(warmup * steps) steps. Behind them, with t from 0 to 1:
    (1 + cos πt)/2, 1 - t, or 1.

    Example:
        >>> run = Training(schedule="linear", warmup=0.5)
        >>> [round(factor(run, step, 8), 2) for step in range(8)]
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25]
    """
    rising = min(round(training.warmup * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    passed = (step - rising) / (steps - rising)
    if training.schedule == "cosine":
        return (1 + math.cos(math.pi * passed)) / 2
    return 1 - passed if training.schedule == "linear" else 1.0
