"""FedDF: a server model that learns, on unlabelled data, what the clients' models say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from alloykit.data.batches import forward
from alloykit.data.examples import Examples
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.outputs import Form
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.evaluation.predicting import detect_kind, log_probabilities, predict
from alloykit.federation.settings import Pooling
from alloykit.training.history import History
from alloykit.training.loop import train
from alloykit.training.rows import Part, Rows, hold
from alloykit.training.settings import Training
from alloykit.types import Task

SAMPLE = 256
"""Examples whose outputs tell logits from probabilities."""


def answers(model: nn.Module, unlabelled: Examples, task: Task) -> Tensor:
    """What one client's model says on the server's data.

    Shapes:
        -> [example, class] log-probabilities, or [example, *output] values; float32

    Raises:
        DataError: Outputs that are NaN, or of another form than the task's.
    """
    outputs = predict(model, unlabelled)
    if task == "regression":
        return outputs
    return log_probabilities(outputs, detect_kind(outputs, task))


def pooled(
    given: Sequence[Tensor], pooling: Pooling = "logits", task: Task = "classification"
) -> Tensor:
    """What several clients say together.

    logits: mean of their logits; probabilities: log of the mean of their probabilities; values:
    their mean

    Use "logits", as the paper does, in rounds: clients then stay close to each other. For models
    that were trained apart for long, each on its own mix of classes, use "probabilities": there
    one client's confident "never" outvotes everybody else's logits.

    Args:
        given: Each client's ``answers``. Log-probabilities are logits too: they differ by a
            number per example, which no softmax sees.
        pooling: What is averaged.
        task: For regression values are averaged, whatever ``pooling`` says.

    Shapes:
        [client][example, *output] -> [example, *output], float32

    Raises:
        MissingInput: No clients.
        DataError: Their shapes differ.

    Example:
        >>> two = [torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()]
        >>> pooled(two, "probabilities").exp()
        tensor([[0.7000, 0.3000]])
    """
    if pooling not in get_args(Pooling):
        raise InvalidParameter(f"'pooling' must be logits or probabilities. Got {pooling!r}.")
    if not given:
        raise MissingInput("There is no client whose answers could be pooled.")
    shapes = sorted({tuple(each.shape) for each in given})
    if len(shapes) > 1:
        raise DataError(
            f"Clients answer in other shapes: {' and '.join(str(list(s)) for s in shapes)}. They "
            "need the same classes in the same order."
        )
    stack = torch.stack([each.double() for each in given])
    if pooling == "logits" or task == "regression":
        return stack.mean(0).float()
    return (torch.logsumexp(stack, 0) - torch.tensor(len(given)).double().log()).float()


def distil(
    model: nn.Module,
    unlabelled: Examples,
    teacher: Tensor,
    training: Training,
    *,
    temperature: float = 1.0,
    task: Task = "classification",
    progress: Callable[[str, int, int], None] | None = None,
) -> History:
    """Train a model in place to agree with ``pooled`` answers; no label is looked at.

    Args:
        model: The average of the clients, or any other start.
        unlabelled: The server's data.
        teacher: What it is to say there.
        training: How.
        temperature: Above 0. The paper takes 1.
        task: "classification" or "regression".
        progress: Called after each step.

    Raises:
        InvalidParameter: Another task.
        DataError: The loss became NaN.

    References:
        Lin, Kong, Stich and Jaggi, Ensemble distillation for robust model fusion in federated
        learning, 2020, arXiv:2006.07242, algorithm 1: Adam, step size 1e-3 along a cosine.
    """
    if task == "tokens":
        raise InvalidParameter(
            "FedDF knows classification and regression: unlabelled tokens do not say which of "
            "them are padding. Use alloykit.distill with labels of -100 there."
        )
    loss = _loss(model, unlabelled, task, temperature)

    def of_batch(module: nn.Module, part: Part) -> Tensor:
        found: Tensor = loss(forward(module, part.inputs), part.extra["teacher"])
        return found

    rows = Rows(hold(unlabelled).inputs, extra={"teacher": teacher})
    return train(model, rows, of_batch, training, progress=progress)


def _loss(
    model: nn.Module, unlabelled: Examples, task: Task, temperature: float
) -> DistillationLoss:
    """The soft loss alone, for a student that gives logits, probabilities or values."""
    if task == "regression":
        return DistillationLoss(alpha=0.0, task=task)
    sample = predict(model, unlabelled.take(SAMPLE))
    form: Form = "probabilities" if detect_kind(sample, task) == "probabilities" else "logits"
    return DistillationLoss(temperature=temperature, alpha=0.0, task=task, student_form=form)
