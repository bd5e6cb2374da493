"""Attention over members: who is believed, example by example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter, listing
from alloykit.fusion.contract import Layer
from alloykit.fusion.feeding import Answer, Feed, FeedName, Standard, feed_for, feed_mistakes
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.fusion.learning import Learning, learn, seeded

START = 8.0
"""Scores that the last layer gives a probability of one before it is trained: with ten classes a
certain member then starts at 99.7 %. A start at 1 took five times as many epochs."""
SCORE_SIZE = 32
"""Numbers per head in which keys and queries are compared."""


class Attending(nn.Module):
    """``(members, context) -> [row, output]``: scores, softmax over members, weighted sum, linear.

    Args:
        shape: What it is built for.
        feed: What it is fed.
        heads: Attention heads, each with scores and a weighted sum of its own.
        with_mean: Whether the members' plain mean stands beside the weighted sums.
        by_context: Whether the query is made from the context instead of the members' mean.
        width: Numbers that the features of each member are brought to; outputs keep their own.
    """

    def __init__(
        self,
        shape: HeadShape,
        feed: FeedName,
        *,
        heads: int,
        with_mean: bool,
        by_context: bool,
        width: int,
    ) -> None:
        super().__init__()
        size = shape.outputs if shape.aligned else width
        self.heads = heads
        self.with_mean = with_mean
        self.feed = Feed(feed, shape)
        self.views = nn.ModuleList(
            nn.Identity() if shape.aligned else nn.Linear(given, size) for given in shape.widths
        )
        self.keys = nn.ModuleList(nn.Linear(size, heads * SCORE_SIZE) for _ in shape.widths)
        self.query = nn.Linear(shape.context if by_context else size, heads * SCORE_SIZE)
        self.context = Standard(shape.context) if by_context else None
        self.last = nn.Linear(size * (heads + int(with_mean)), shape.outputs)
        self.answer = Answer(shape)
        if shape.aligned:
            start = START if feed in ("sqrt", "probabilities") else 1.0
            _start_at_the_mean(self.last, start, heads, with_mean)

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities, or values."""
        tokens = self._tokens(members)
        weights = self._weights(tokens, context)
        parts = torch.bmm(weights, tokens).flatten(1)
        if self.with_mean:
            parts = torch.cat([parts, tokens.mean(1)], dim=1)
        return cast(Tensor, self.answer(self.last(parts)))

    def attention(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """How far each member is believed: ``[row, member]``, summing to one; mean over heads."""
        return self._weights(self._tokens(members), context).mean(1)

    def learn(self, data: HeadData) -> Attending:
        """Take means and scales from this data; the weights stay what they are."""
        self.feed.learn(data)
        self.answer.learn(data.targets)
        if self.context is not None:
            self.context.learn(cast(Tensor, data.context))
        return self

    def _tokens(self, members: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.views, self.feed(members), strict=True)
        return torch.stack([view(fed) for view, fed in pairs], dim=1)

    def _weights(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        asked = tokens.mean(1) if self.context is None else self.context(context)
        query = self.query(asked).view(-1, 1, self.heads, SCORE_SIZE)
        keys = [key(token) for key, token in zip(self.keys, tokens.unbind(1), strict=True)]
        offered = torch.stack(keys, dim=1).view(-1, len(keys), self.heads, SCORE_SIZE)
        # A product and a sum are half the time of einsum on rows this short.
        scores: Tensor = (query * offered).sum(-1) / math.sqrt(SCORE_SIZE)
        return scores.transpose(1, 2).softmax(-1)


@torch.no_grad()
def _start_at_the_mean(last: nn.Linear, start: float, heads: int, with_mean: bool) -> None:
    same = start * torch.eye(last.out_features)
    parts = [same / (heads * (1 + with_mean))] * heads + [same / 2] * int(with_mean)
    last.weight.copy_(torch.cat(parts, dim=1))
    last.bias.zero_()


def attention_layer(
    name: str,
    *,
    heads: int,
    with_mean: bool,
    by_context: bool,
    width: int,
    feed: FeedName | None,
    how: Learning,
) -> Layer:
    """What ``attention`` and ``attention_mean`` are made of.

    Raises:
        InvalidParameter: Parameters outside their ranges; all are listed.
    """
    wrong = feed_mistakes(feed, name)
    for key, value in (("heads", heads), ("width", width)):
        if not isinstance(value, int) or value < 1:
            wrong.append(f"The {key!r} of {name} must be a whole number, at least 1. Got {value}.")
    if wrong:
        raise InvalidParameter(wrong[0] if len(wrong) == 1 else f"{name}:\n{listing(wrong)}")

    def build(shape: HeadShape) -> Attending:
        fed = feed_for(feed, shape, classes="sqrt")
        return seeded(
            lambda: Attending(
                shape, fed, heads=heads, with_mean=with_mean, by_context=by_context, width=width
            ),
            how.training.seed,
        )

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        return learn(build(shape).learn(data), data, shape, how)

    return Layer(build, fit, context="required" if by_context else "none")
