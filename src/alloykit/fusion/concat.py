"""The members' outputs or features side by side, then a linear layer or a small network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter, listing
from alloykit.fusion.contract import EVERY_TASK, Layer, fusion_head
from alloykit.fusion.feeding import Answer, Feed, FeedName, feed_for, feed_mistakes
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.fusion.learning import Learning, learn, learning, seeded
from alloykit.fusion.linear_layer import PULLS, mean_weights, solve_layer
from alloykit.numerics import is_number, is_whole

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@fusion_head(
    tasks=EVERY_TASK,
    candidates=({}, {"hidden": [64]}),
    formula="softmax(W [x₁; …; x_M] + b), W and b at their optimum; or a network in its place",
    paper="Wolpert, Stacked generalization, 1992.",
)
def concat(
    hidden: Sequence[int] = (),
    activation: Literal["relu", "gelu", "tanh"] = "relu",
    dropout: float = 0.0,
    feed: FeedName | None = None,
    pull: float | None = None,
    epochs: int = 200,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    patience: int = 30,
    seed: int = 0,
) -> Layer:
    """Put what the members give side by side, then a linear layer solved to its optimum.

    p = softmax(W [x₁; …; x_M] + b), with W, b at the minimum of the log loss plus
    pull/(2N) · ‖[W b] - [W₀ 0]‖²

    For outputs W₀ = [I/M … I/M], the plain mean of the members' clipped log-probabilities (or of
    their values): what the data does not speak against stays the mean. For features W₀ = 0 on
    standardised columns. Regression is ridge regression in closed form. With ``hidden`` sizes it
    is a small network instead, trained by AdamW on four rows in five and stopped by the fifth.

    Use it when members know different things and there are some hundred labelled examples that
    none of them was trained on: it was the best head of those measured. It has M·C² numbers to
    learn, so with fewer examples ``log_pool`` is safer. Hidden sizes pay when members depend on
    each other in ways that no sum expresses; they rarely beat the solved layer.

    Args:
        hidden: Sizes of hidden layers, each at least 1; () is the linear layer.
        activation: Between the layers of a network.
        dropout: Part of the hidden units left out in training, in [0, 1).
        feed: "log" (log-probabilities not below -6), "sqrt" (√p), "probabilities" or "standard"
            (columns of mean 0 and deviation 1). None: "log" for linear layers, "sqrt" for networks,
            and "standard" for values and features, which measured best.
        pull: Pull of the linear layer to W₀, > 0, in examples: scikit-learn's 1/C for classes, its
            alpha for values. None: five-fold cross-validation chooses from 1, 3, 10, 30.
        epochs: Most passes over the data, for networks.
        batch_size: Rows a step, for networks; None takes a twentieth of them, at least 128.
        learning_rate: Peak step size of AdamW, > 0, for networks.
        weight_decay: AdamW's, at least 0, for networks.
        patience: Epochs without a better held-out loss before training stops, for networks.
        seed: Of the folds, the held-out rows, the starting weights and the order of the rows.

    Shapes:
        member x [row, width] -> [row, output]

    Raises:
        InvalidParameter: Parameters outside their ranges; all are listed.

    Example:
        >>> from alloykit.fusion.head import HeadData, HeadShape
        >>> members = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.1, 0.9]]]).log()
        >>> data = HeadData(tuple(members), torch.tensor([0, 1]))
        >>> fitted = concat(pull=1).fit(data, HeadShape((2, 2), 2, "classification"))
        >>> fitted.module(members).exp().argmax(1)
        tensor([0, 1])

    References:
        Wolpert, Stacked generalization, 1992. Ting and Witten, Issues in stacked generalization,
        1999, section 3, arXiv:1105.5466: probabilities rather than classes as inputs. They take
        least squares with non-negative weights, pulled nowhere; we take the log loss, weights of
        either sign, and the pull to the mean.
    """
    _check(hidden, activation, dropout, feed, pull)
    how = learning(epochs, batch_size, learning_rate, weight_decay, patience, seed)
    if not hidden:
        return _solved(feed, PULLS if pull is None else (pull,), seed)
    return _network(tuple(hidden), activation, dropout, feed, how)


class Concat(nn.Module):
    """``(members, context) -> [row, output]``: feed, put side by side, layers."""

    def __init__(self, feed: Feed, layers: nn.Module, answer: Answer) -> None:
        super().__init__()
        self.feed = feed
        self.layers = layers
        self.answer = answer

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities, or values; a context is not looked at."""
        answer: Tensor = self.answer(self.layers(self.columns(members)))
        return answer

    def learn(self, data: HeadData) -> Concat:
        """Take means and scales from this data; the layers stay what they are."""
        self.feed.learn(data)
        self.answer.learn(data.targets)
        return self

    def columns(self, members: Sequence[Tensor]) -> Tensor:
        """``[row, column]``: what the layers see."""
        return torch.cat(self.feed(members), dim=1)


def _check(
    hidden: Sequence[int],
    activation: str,
    dropout: float,
    feed: FeedName | None,
    pull: float | None,
) -> None:
    wrong = feed_mistakes(feed, "concat")
    several = isinstance(hidden, tuple | list)
    if not several or any(not is_whole(size) or size < 1 for size in hidden):
        wrong.append(
            "The 'hidden' sizes of concat must be whole numbers of at least 1, as in [64, 32]. "
            f"Got {hidden!r}."
        )
    if activation not in ACTIVATIONS:
        wrong.append(
            f"The 'activation' of concat must be one of {', '.join(ACTIVATIONS)}. "
            f"Got {activation!r}."
        )
    if not is_number(dropout) or not 0 <= dropout < 1:
        wrong.append(f"The 'dropout' of concat must be in [0, 1). Got {dropout!r}.")
    if pull is not None and not (is_number(pull) and 0 < pull < float("inf")):
        wrong.append(f"The 'pull' of concat must be above 0. Got {pull!r}.")
    if pull is not None and hidden:
        wrong.append("The 'pull' of concat is for linear layers; 'hidden' sizes have none.")
    if dropout and not hidden:
        wrong.append("The 'dropout' of concat is for 'hidden' layers, and there are none.")
    if wrong:
        raise InvalidParameter(wrong[0] if len(wrong) == 1 else f"concat:\n{listing(wrong)}")


def _solved(feed: FeedName | None, pulls: Sequence[float], seed: int) -> Layer:
    def build(shape: HeadShape) -> Concat:
        name = feed_for(feed, shape, classes="log")
        linear = seeded(lambda: nn.Linear(sum(shape.widths), shape.outputs), seed)
        _set(linear, mean_weights(shape, name))
        return Concat(Feed(name, shape), linear, Answer(shape))

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        module = build(shape)
        # In float64 before solving: rounding columns first would move the optimum.
        columns = module.double().learn(data).columns(data.members)
        anchor = mean_weights(shape, module.feed.name)
        targets = module.answer.inward(data.targets)
        solution, chosen = solve_layer(
            columns, targets, anchor, pulls=pulls, shape=shape, seed=seed
        )
        _set(module.layers, solution.weights)
        return FittedHead(module.float(), chosen)

    return Layer(build, fit)


@torch.no_grad()
def _set(linear: nn.Module, weights: Tensor) -> None:
    linear.get_parameter("weight").copy_(weights[:, :-1])
    linear.get_parameter("bias").copy_(weights[:, -1])


def _network(
    hidden: tuple[int, ...],
    activation: str,
    dropout: float,
    feed: FeedName | None,
    how: Learning,
) -> Layer:
    def layers(sizes: tuple[int, ...]) -> nn.Module:
        steps: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes[:-1]):
            steps += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
            steps += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*steps, nn.Linear(sizes[-2], sizes[-1]))

    def build(shape: HeadShape) -> Concat:
        sizes = (sum(shape.widths), *hidden, shape.outputs)
        network = seeded(lambda: layers(sizes), how.training.seed)
        return Concat(Feed(feed_for(feed, shape, classes="sqrt"), shape), network, Answer(shape))

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        return learn(build(shape).learn(data), data, shape, how)

    return Layer(build, fit)
