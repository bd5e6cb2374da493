"""Heads that are trained by gradient: on four rows in five, stopped by the fifth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alloykit.fusion.feeding import Standard
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.fusion.parting import held_out
from alloykit.threads import threads_for
from alloykit.training.loop import Validation, train
from alloykit.training.rows import Part, Rows
from alloykit.training.settings import Training

Made = TypeVar("Made")

FEWEST, STEPS = 128, 20
"""Rows a step where nothing is said, and the steps that an epoch over many rows is cut into."""


def seeded(build: Callable[[], Made], seed: int) -> Made:
    """What ``build`` makes with torch seeded; the caller's random state is as before."""
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: manual_seed would reseed those of the GPUs as well.
        torch.default_generator.manual_seed(seed)
        return build()


@dataclass(frozen=True)
class Learning:
    """How a head is trained.

    Attributes:
        training: Its seed also chooses the rows that are held out.
        widen: Whether batches grow with the rows, so that many take no more steps than few.
    """

    training: Training
    widen: bool


def learning(
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    weight_decay: float,
    patience: int,
    seed: int,
) -> Learning:
    """The parameters that all of these heads have, as one; batches of None grow with the rows.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.
    """
    training = Training(
        epochs=epochs,
        batch_size=FEWEST if batch_size is None else batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        seed=seed,
    )
    return Learning(training, widen=batch_size is None)


def learn(module: nn.Module, data: HeadData, shape: HeadShape, how: Learning) -> FittedHead:
    """Train a head on cached outputs, early stopping on rows that it does not train on.

    Args:
        module: ``(members, context) -> [row, output]``; trained in place.
        data: What the members gave.
        shape: What the head is built for.
        how: How.
    """
    training = how.training
    spread = None if shape.task != "regression" else Standard(shape.outputs).learn(data.targets)
    inside, apart = held_out(data.targets, training.seed)
    if how.widen:
        wide = max(training.batch_size, math.ceil(len(inside) / STEPS))
        training = replace(training, batch_size=wide)
    unseen = _rows(data).part(apart)

    def loss(model: nn.Module, part: Part) -> Tensor:
        outputs = _run(model, part, shape)
        return head_loss(outputs, cast(Tensor, part.targets), spread)

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        return float(loss(model, unseen))

    work = training.batch_size * sum(parameter.numel() for parameter in module.parameters())
    with threads_for(work):
        history = train(
            module,
            _rows(data, inside),
            loss,
            training,
            validation=Validation(measure, "squared error" if spread else "log loss"),
        )
    return FittedHead(module, {"epochs": history.best}, tuple(history.to_json()["epochs"]))


def head_loss(outputs: Tensor, targets: Tensor, spread: Standard | None) -> Tensor:
    """The mean log loss; or the mean squared error of values in units of their spread.

    Shapes:
        outputs [row, output], targets [row] or [row, output] -> []
    """
    if spread is None:
        return F.nll_loss(outputs, targets)
    return F.mse_loss(spread(outputs), spread(targets).to(outputs))


def _run(model: nn.Module, part: Part, shape: HeadShape) -> Tensor:
    inputs = cast(tuple[Tensor, ...], part.inputs)
    count = len(shape.widths)
    return cast(Tensor, model(inputs[:count], inputs[count] if len(inputs) > count else None))


def _rows(data: HeadData, kept: Tensor | None = None) -> Rows:
    inputs = (*data.members, *(() if data.context is None else (data.context,)))
    if kept is None:
        return Rows(inputs, data.targets)
    return Rows(tuple(column[kept] for column in inputs), data.targets[kept])
