"""A mixture of experts: a small network looks at the input and says whom to believe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter
from alloykit.fusion.contract import EVERY_TASK, OUTPUTS, Layer, fusion_head
from alloykit.fusion.feeding import Standard
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.fusion.learning import learn, learning, seeded


@fusion_head(
    tasks=EVERY_TASK,
    sources=OUTPUTS,
    context="required",
    formula="p = Σ gₘ(x) pₘ, g = softmax(network(x))",
    paper="Jacobs et al., Adaptive mixtures of local experts, 1991.",
)
def gated(
    hidden: Sequence[int] = (64,),
    epochs: int = 200,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    patience: int = 30,
    seed: int = 0,
) -> Layer:
    """Mix the members' probabilities with weights that a small network reads from the input.

    p(y|x) = Σ gₘ(x) pₘ(y|x), g = softmax(network(x)); loss -log p(y|x). For values y = Σ gₘ(x) yₘ

    Use it when the inputs tell which member is at home (another sensor, another language), and
    there are some thousand labelled examples. The result is always a mixture of what the members
    say, so that it cannot invent a class that none of them believes; it starts at their mean.

    Args:
        hidden: Sizes of the network's hidden layers, each at least 1; () is a linear router.
        epochs: Most passes over the data.
        batch_size: Rows a step; None takes a twentieth of them, at least 128.
        learning_rate: Peak step size of AdamW, > 0.
        weight_decay: AdamW's, at least 0.
        patience: Epochs without a better held-out loss before training stops.
        seed: Of the held-out rows, the starting weights and the order of the rows.

    Shapes:
        member x [row, output], context [row, context] -> [row, output]

    Raises:
        InvalidParameter: Hidden sizes below 1.

    Example:
        >>> from alloykit.fusion.head import HeadData, HeadShape
        >>> context = torch.tensor([[-1.0], [1.0]]).repeat(40, 1)
        >>> sure, wrong = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.1, 0.9]]).log()
        >>> members = (sure.expand(80, 2), wrong.expand(80, 2))
        >>> data = HeadData(members, torch.tensor([0, 1]).repeat(40), context)
        >>> fitted = gated(epochs=20).fit(data, HeadShape((2, 2), 2, "classification", context=1))
        >>> fitted.module.attention(members, context)[:2].argmax(1)
        tensor([0, 1])

    References:
        Jacobs, Jordan, Nowlan, Hinton, Adaptive mixtures of local experts, 1991: their equation
        1.3, with frozen experts, for classes. Shazeer et al., 2017, arXiv:1701.06538, balance the
        load of experts that are trained along; ours are trained already, and need no balance.
    """
    if any(not isinstance(size, int) or size < 1 for size in hidden):
        raise InvalidParameter(f"The 'hidden' sizes of gated must be at least 1. Got {hidden}.")
    how = learning(epochs, batch_size, learning_rate, weight_decay, patience, seed)

    def build(shape: HeadShape) -> Gated:
        return seeded(lambda: Gated(shape, tuple(hidden)), seed)

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        module = build(shape)
        module.standard.learn(cast(Tensor, data.context))
        return learn(module, data, shape, how)

    return Layer(build, fit)


class Gated(nn.Module):
    """``(members, context) -> [row, output]``: the members' mixture with the router's weights."""

    def __init__(self, shape: HeadShape, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = shape.task != "regression"
        self.standard = Standard(shape.context)
        sizes = (shape.context, *hidden)
        steps: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            steps += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        last = nn.Linear(sizes[-1], len(shape.widths))
        # All gates equal: training begins at the members' mean.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.router = nn.Sequential(*steps, last)

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities, or values."""
        scores: Tensor = self.router(self.standard(context))
        stack = torch.stack([member.to(scores) for member in members], dim=1)
        if not self.classes:
            return (scores.softmax(-1)[..., None] * stack).sum(1)
        return (scores.log_softmax(-1)[..., None] + stack).logsumexp(1)

    def attention(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """How far each member is believed: ``[row, member]``, summing to one."""
        return cast(Tensor, self.router(self.standard(context)).softmax(-1))
