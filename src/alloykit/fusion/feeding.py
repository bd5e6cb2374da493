"""What feeds a head: clipped log-probabilities, square roots, standardised columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter, did_you_mean
from alloykit.fusion.head import HeadData, HeadShape

FeedName = Literal["log", "sqrt", "probabilities", "standard"]

LOG_FLOOR = -6.0
"""Log-probabilities below this count as this: e^-6 is 0.25 %."""


class Standard(nn.Module):
    """(x - mean)/scale by column, with the mean and standard deviation of the data it learned from.

    Shapes:
        [row, width] -> [row, width]
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        """From the values' own units to standard ones."""
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        return (values.to(mean) - mean) / scale

    def outward(self, values: Tensor) -> Tensor:
        """From standard units back."""
        return values * self.get_buffer("scale") + self.get_buffer("mean")

    @torch.no_grad()
    def learn(self, values: Tensor) -> Standard:
        """Take mean and standard deviation of each column; a constant one is left at zero."""
        wide = values.double()
        mean = wide.mean(0)
        scale = (wide - mean).square().mean(0).sqrt()
        # Rounding leaves a constant column a deviation of about the precision of its values.
        constant = scale <= 1e-6 * mean.abs() + 1e-30
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("scale").copy_(torch.where(constant, torch.ones_like(scale), scale))
        return self


class Feed(nn.Module):
    """Members' tensors in the form that a head reads, in the precision of the head.

    log: max(log p, -6); sqrt: √p; probabilities: p; standard: (x - mean)/scale by column, of
    max(log p, -6) where x are log-probabilities

    Means and scales are the columns' own. Values that predict the targets take the targets'
    instead, all members the same, so that their plain mean stays a plain mean.

    What a head is fed decides how good it gets: on 26 classes clipped logarithms gave linear heads
    2 points over logarithms clipped at -15, and square roots gave small networks 8.

    Args:
        name: One of the four.
        shape: What the head is built for.

    Shapes:
        member x [row, width] -> member x [row, width]
    """

    def __init__(self, name: FeedName, shape: HeadShape) -> None:
        super().__init__()
        self.name = name
        self.shape = shape
        # A buffer in any case: it carries the precision and the device that the head is moved to.
        self.register_buffer("floor", torch.tensor(LOG_FLOOR))
        widths = shape.widths if name == "standard" else ()
        self.standards = nn.ModuleList(Standard(width) for width in widths)

    def forward(self, members: Sequence[Tensor]) -> list[Tensor]:
        """Each member's tensor as the head reads it."""
        like = self.get_buffer("floor")
        fed = [self._mapped(member.to(like)) for member in members]
        if self.name != "standard":
            return fed
        return [standard(values) for standard, values in zip(self.standards, fed, strict=True)]

    def _mapped(self, member: Tensor) -> Tensor:
        if self.name == "sqrt":
            return (member / 2).exp()
        if self.name == "probabilities":
            return member.exp()
        if gives_classes(self.shape):
            return torch.maximum(member, self.get_buffer("floor"))
        return member

    def learn(self, data: HeadData) -> Feed:
        """Take means and scales from this data, where there are any."""
        predicts_values = self.shape.aligned and self.shape.task == "regression"
        for standard, member in zip(self.standards, data.members, strict=False):
            values = data.targets if predicts_values else self._mapped(member)
            cast(Standard, standard).learn(values)
        return self


class Answer(nn.Module):
    """From a head's last layer to what it returns: log-probabilities, or values in their units.

    log_softmax(z), or mean + scale · z with the targets' mean and standard deviation: layers then
    learn numbers near one, whatever the unit of the targets.

    Shapes:
        [row, output] -> [row, output]
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.standard = Standard(shape.outputs) if shape.task == "regression" else None

    def forward(self, scores: Tensor) -> Tensor:
        """Log-probabilities, or values."""
        return scores.log_softmax(-1) if self.standard is None else self.standard.outward(scores)

    def inward(self, targets: Tensor) -> Tensor:
        """What the last layer is to meet: classes as they are, values in standard units."""
        return targets if self.standard is None else self.standard.forward(targets)

    def learn(self, targets: Tensor) -> Answer:
        """Take mean and standard deviation from these targets, if they are values."""
        if self.standard is not None:
            self.standard.learn(targets)
        return self


def gives_classes(shape: HeadShape) -> bool:
    """Whether the members give log-probabilities of classes."""
    return shape.source == "outputs" and shape.task != "regression"


def feed_for(name: FeedName | None, shape: HeadShape, *, classes: FeedName) -> FeedName:
    """The feed asked for, or the default: ``classes`` for log-probabilities, else standardised.

    Raises:
        InvalidParameter: Probabilities are asked for where the members give none.
    """
    if name is None:
        return classes if gives_classes(shape) else "standard"
    if name != "standard" and not gives_classes(shape):
        given = "features" if shape.source == "features" else "values"
        raise InvalidParameter(
            f"The feed {name!r} is made of probabilities, and the members give {given}. "
            "Leave 'feed' out, or give 'standard'."
        )
    return name


def feed_mistakes(name: str | None, head: str) -> list[str]:
    """What is wrong with a feed's name, as lines for one error that lists all mistakes."""
    known = list(get_args(FeedName))
    if name is None or name in known:
        return []
    hint = did_you_mean(str(name), known)
    return [f"The 'feed' of {head} must be one of {', '.join(known)}. Got {name!r}.{hint}"]
