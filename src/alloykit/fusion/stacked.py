"""scikit-learn estimators as modules: linear ones in torch, any other as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alloykit.errors import CheckpointError, MissingInput
from alloykit.evaluation.predicting import LOWEST, SMALLEST
from alloykit.fusion.feeding import Feed, FeedName, feed_for, gives_classes
from alloykit.fusion.head import HeadData, HeadShape


class SideBySide(nn.Module):
    """Members' tensors side by side, as scikit-learn's stacking has them unless a feed is named.

    Shapes:
        member x [row, width] -> [row, column]
    """

    def __init__(self, shape: HeadShape, feed: FeedName | None) -> None:
        super().__init__()
        classes = gives_classes(shape)
        # Of two probabilities scikit-learn keeps the second: the other one follows from it.
        self.second_only = classes and feed is None and set(shape.widths) == {2}
        name = feed_for(feed, shape, classes="probabilities") if feed or classes else None
        self.feed = None if name is None else Feed(name, shape)
        self.width = len(shape.widths) if self.second_only else sum(shape.widths)

    def forward(self, members: Sequence[Tensor]) -> Tensor:
        """The columns."""
        fed = list(members) if self.feed is None else self.feed(members)
        return torch.cat([values[:, 1:] if self.second_only else values for values in fed], dim=1)

    def learn(self, data: HeadData) -> SideBySide:
        """Take means and scales from this data, where the feed has any."""
        if self.feed is not None:
            self.feed.learn(data)
        return self


class StackedLinear(nn.Module):
    """``(members, context) -> [row, output]``: a linear estimator as a torch layer.

    In float64, as scikit-learn computes: columns of probabilities sum to one, and estimators
    without a penalty give them large coefficients that cancel.
    """

    def __init__(self, shape: HeadShape, feed: FeedName | None) -> None:
        super().__init__()
        self.classes = shape.task != "regression"
        self.columns = SideBySide(shape, feed)
        self.weight = nn.Parameter(torch.zeros(shape.outputs, self.columns.width))
        self.bias = nn.Parameter(torch.zeros(shape.outputs))

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities, or values; a context is not looked at."""
        columns = self.columns(members).to(self.weight)
        scores = nn.functional.linear(columns, self.weight, self.bias)
        answer = scores.log_softmax(-1) if self.classes else scores
        return answer.to(members[0].dtype)

    @torch.no_grad()
    def take(self, estimator: Any) -> None:
        """Copy the fitted estimator's coefficients; classes it never saw get probability zero."""
        slopes = torch.from_numpy(np.atleast_2d(estimator.coef_)).double()
        bias = torch.from_numpy(np.atleast_1d(estimator.intercept_)).double().expand(len(slopes))
        if not self.classes:
            self.weight.copy_(slopes)
            self.bias.copy_(bias)
            return
        if len(slopes) == 1:
            # One score for two classes is the second one's; the first has none.
            slopes = torch.cat([torch.zeros_like(slopes), slopes])
            bias = torch.cat([torch.zeros_like(bias), bias])
        seen = torch.as_tensor(estimator.classes_).long()
        self.weight.zero_()
        self.bias.fill_(LOWEST)
        self.weight[seen] = slopes.to(self.weight)
        self.bias[seen] = bias.to(self.bias)


class StackedEstimator(nn.Module):
    """``(members, context) -> [row, output]``: a fitted estimator that runs in scikit-learn.

    The estimator is the module's extra state: a state dict takes it along in memory; files of
    tensors alone cannot hold it.
    """

    def __init__(self, shape: HeadShape, feed: FeedName | None) -> None:
        super().__init__()
        self.shape = shape
        self.columns = SideBySide(shape, feed)
        self.estimator: Any = None

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities, or values; a context is not looked at."""
        if torch.compiler.is_compiling():
            raise CheckpointError(
                f"A head made of {type(self.estimator).__name__} cannot be exported: it runs in "
                "scikit-learn. Stack with a linear estimator, such as LogisticRegression or "
                "Ridge, or use another head."
            )
        if self.estimator is None:
            raise MissingInput("The head stacking has not been fitted: call head.fit first.")
        columns = self.columns(members).double().numpy(force=True)
        said = self._values(columns) if self.shape.task == "regression" else self._logs(columns)
        return said.to(members[0])

    def take(self, estimator: Any) -> None:
        """Keep the fitted estimator."""
        self.estimator = estimator

    def get_extra_state(self) -> Any:
        """The fitted estimator, for state dicts in memory."""
        return self.estimator

    def set_extra_state(self, state: Any) -> None:
        """Take the estimator of another module."""
        self.estimator = state

    def _values(self, columns: Any) -> Tensor:
        return torch.from_numpy(self.estimator.predict(columns)).view(-1, self.shape.outputs)

    def _logs(self, columns: Any) -> Tensor:
        said = torch.from_numpy(self.estimator.predict_proba(columns))
        every = torch.zeros(len(said), self.shape.outputs, dtype=torch.float64)
        every[:, torch.as_tensor(self.estimator.classes_).long()] = said.double()
        return every.clamp_min(SMALLEST).log()
