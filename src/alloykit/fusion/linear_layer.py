"""One linear layer over what the members give, pulled to their mean and solved to its optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alloykit.fusion.feeding import FeedName, gives_classes
from alloykit.fusion.head import HeadShape
from alloykit.fusion.solving import Solution, cross_validated, ridge, softmax_regression
from alloykit.threads import threads_for

PULLS = (1.0, 3.0, 10.0, 30.0)
"""What cross-validation chooses from: the range of the best ones on digits and letters, with
members that saw even and skewed parts of the data."""


def mean_weights(shape: HeadShape, feed: FeedName) -> Tensor:
    """``[output, column + 1]``: the weights that give the members' mean, with no bias.

    Zero where there is no such mean: for features, and for feeds in which a mean of the columns
    is not a mean of what the members say.
    """
    columns = sum(shape.widths)
    if not shape.aligned or feed != ("log" if gives_classes(shape) else "standard"):
        return torch.zeros(shape.outputs, columns + 1, dtype=torch.float64)
    share = torch.eye(shape.outputs, dtype=torch.float64) / len(shape.widths)
    none = torch.zeros(shape.outputs, 1, dtype=torch.float64)
    return torch.cat([share.repeat(1, len(shape.widths)), none], dim=1)


def solve_layer(
    columns: Tensor,
    targets: Tensor,
    anchor: Tensor,
    *,
    pulls: Sequence[float],
    shape: HeadShape,
    seed: int,
) -> tuple[Solution, dict[str, Any]]:
    """The optimal weights, and what was chosen on the way.

    Args:
        columns: ``[row, column]`` as they come from the feed.
        targets: ``[row]`` classes or ``[row, output]`` standardised values.
        anchor: ``[output, column + 1]``, from ``mean_weights``.
        pulls: Cross-validation chooses from them where there are several.
        shape: What the head is built for.
        seed: Of the folds.
    """
    solve = ridge if shape.task == "regression" else softmax_regression
    pull, losses = pulls[0], dict.fromkeys(pulls, 0.0)
    with threads_for(len(columns) * anchor.numel()):
        if len(pulls) > 1:
            losses = cross_validated(
                solve, columns, targets, anchor, pulls, task=shape.task, seed=seed
            )
            pull = min(losses, key=lambda pull: losses[pull])
        solution = solve(columns, targets, anchor, pull)
    chosen: dict[str, Any] = {"pull": float(pull), "gradient": solution.gradient}
    if len(pulls) > 1:
        chosen["loss_by_pull"] = {f"{pull:g}": losses[pull] for pull in sorted(losses)}
    return solution, chosen
