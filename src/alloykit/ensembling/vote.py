"""One member, one vote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.ensembling.pooling import pool
from alloykit.ensembling.rule import CLASSES, Fit, Pooling, ensemble_rule, learned
from alloykit.ensembling.weighted import scored_weights
from alloykit.errors import InvalidParameter
from alloykit.evaluation.metrics import metric
from alloykit.numerics import compute_dtype, normalised
from alloykit.types import State

_TIE = 1e-6
"""Shares of the votes that differ by less than this are a tie; float32 sums are no finer."""


@ensemble_rule(
    tasks=CLASSES,
    fits=True,
    keeps="winner",
    candidates=({}, {"by": "accuracy"}),
    formula="argmax over c of Σ wₘ [argmax pₘ = c]",
    paper="scikit-learn, VotingClassifier(voting='hard').",
)
def vote(
    by: str | None = None,
    weights: Sequence[float] | None = None,
    power: float = 1.0,
    smoothing: float = 1e-3,
) -> Pooling:
    """Let every member vote for its most probable class; the class with most votes wins.

    v_c = Σ wₘ [argmax pₘ = c], Σ w = 1; p_c = (v_c + ε + ε [c wins]) / (1 + (C + 1) ε)

    Use it when the members' confidences cannot be trusted or compared, or when a decision has to
    be explained. It throws the confidences away: as probabilities its output is coarse, and its
    log loss mostly tells how large ε is; wrap it in ``calibrated`` if you need probabilities.

    A tie goes to the tied class with the largest (weighted) mean probability; the winner's extra
    ε makes it the largest output.

    Args:
        by: A metric's name: each member's vote counts as its score on validation data.
        weights: By hand instead, one non-negative number per member; divided by their sum.
        power: Exponent of the scores, >= 0. Of no effect without ``by``.
        smoothing: ε > 0, the share that every class gets, so that no outcome is impossible and
            the log loss is finite. 1e-3 makes a unanimous error cost 6.9 nats.

    Shapes:
        stack [member, example, class] -> [example, class]
        state: weights [member], where ``by`` is given

    Raises:
        InvalidParameter: Both ``by`` and ``weights``, or ``smoothing`` not in (0, 1].
        UnknownName: There is no such metric.

    Example:
        >>> stack = torch.tensor([[[0.6, 0.4]], [[0.6, 0.4]], [[0.0, 1.0]]]).log()
        >>> vote().combine(stack, {}).exp()
        tensor([[0.6667, 0.3333]])

    References:
        scikit-learn's VotingClassifier gives a tie to the lowest class, which favours it; we do
        not. It has no probabilities under voting="hard".
    """
    if by is not None and weights is not None:
        raise InvalidParameter("Give vote either 'by' or 'weights', not both.")
    if not 0 < smoothing <= 1:
        raise InvalidParameter(f"The 'smoothing' of vote must be in (0, 1]. Got {smoothing}.")

    def combine(stack: Tensor, state: State) -> Tensor:
        if by is not None or "weights" in state:
            mix = learned(state, "weights", "vote")
        else:
            mix = torch.tensor(normalised(weights, len(stack)), dtype=torch.float64)
        return _counted(stack.to(compute_dtype(stack.dtype)), mix, smoothing)

    def fit(stack: Tensor, targets: Tensor) -> State:
        return {"weights": scored_weights(stack, targets, by or "accuracy", power)}

    fitted: Fit | None = fit if by is not None else None
    return Pooling(combine, fitted, CLASSES & metric(by).tasks if by else CLASSES)


def _counted(stack: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    classes = stack.shape[-1]
    ballots = torch.nn.functional.one_hot(stack.argmax(-1), classes).to(stack.dtype)
    shares = weights.to(stack).view(-1, *(1,) * (stack.ndim - 1))
    votes = (shares * ballots).sum(0)
    tied = votes >= votes.amax(-1, keepdim=True) - _TIE
    confidence = pool(stack, weights, "probabilities").exp().masked_fill(~tied, 0.0)
    # Confidences are compared as coarsely as votes, so that the order of members cannot matter.
    winner = (tied & (confidence >= confidence.amax(-1, keepdim=True) - _TIE)).int().argmax(-1)
    bonus = torch.nn.functional.one_hot(winner, classes).to(stack.dtype)
    smoothed = votes + smoothing * (1 + bonus)
    return (smoothed / smoothed.sum(-1, keepdim=True)).log()
