"""What a model says on a split, computed once; and what its outputs mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alloykit.data.batches import Inputs, forward, length, parts, placed
from alloykit.data.examples import Examples
from alloykit.data.outputs import output_tensor
from alloykit.data.storage import MEMORY_LIMIT, room
from alloykit.errors import AlloyError, DataError
from alloykit.types import Kind, Task

SUM_TOLERANCE = 5e-3
"""How far rows of probabilities may be from a sum of one: what bfloat16 leaves."""

LOWEST = -1e4
"""Stands for the logarithm of zero, so that weight 0 times it is 0 and not NaN."""

SMALLEST = torch.finfo(torch.float32).tiny
BLOCK = 1 << 22


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's training flag is restored exactly."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def running(who: str, inputs: Inputs) -> Iterator[None]:
    """Say whose forward pass failed, and on inputs of which shape, where one fails inside.

    Raises:
        DataError: With the failure in its text, and as its cause.
    """
    try:
        yield
    except (AlloyError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = " and ".join(f"{list(t.shape)} {t.dtype}" for t in parts(inputs))
        raise DataError(
            f"{who} cannot be run on inputs {shapes}: {type(error).__name__}: {error}. Give inputs "
            "as it was trained on; adapted(model, ...) transforms them for one model alone."
        ) from error


def predict(
    model: nn.Module,
    examples: Examples,
    *,
    progress: Callable[[int, int], None] | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Tensor:
    """The model's outputs on all examples, in their order.

    The model runs where it is, in evaluation mode, without gradients; nothing of it changes.
    Inputs go to its device, real ones in its dtype. A single output per example is kept as it
    is: ``log_probabilities`` makes two classes of it.

    Args:
        model: Gives a tensor, or an object or mapping with ``logits`` (as transformers do).
        examples: The split.
        progress: Called after each batch with (examples done, examples in all).
        memory_limit: Bytes of outputs kept in memory; larger ones are memory-mapped.

    Shapes:
        -> [example, *output], float32, on the CPU

    Raises:
        DataError: Another kind of output, a wrong first dimension, NaN or +Inf in the outputs.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples(([[1.0], [2.0]], [0, 1]), "test")
        >>> predict(nn.Identity(), split)
        tensor([[1.],
                [2.]])
    """
    total, done, bad = len(examples), 0, 0
    outputs: Tensor | None = None
    with evaluating(model):
        for inputs, _ in examples.batches():
            count = length(inputs)
            with running("The model", inputs):
                raw = forward(model, placed(inputs, model))
            given = batch_outputs(raw, count)
            if outputs is None:
                outputs = room((total, *given.shape[1:]), memory_limit)
            _same_shape(given, outputs, done)
            outputs[done : done + count] = given
            bad += _unusable(given)
            done += count
            if progress is not None:
                progress(done, total)
    if outputs is None:
        raise DataError(f"The {examples.name} split has no examples to predict.")
    if bad:
        raise DataError(
            f"The outputs are NaN or +Inf for {bad} of {total} examples of {examples.name}. "
            "Look at these inputs and at the model's parameters; a float16 model may overflow."
        )
    return outputs


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of wrappers that cannot compute with other tensors, or hide their layers.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def batch_outputs(given: Any, count: int) -> Tensor:
    """The float32 CPU tensor in whatever a model gave for ``count`` examples."""
    logits = output_tensor(given)
    if logits.dim() == 0 or len(logits) != count:
        raise DataError(
            f"The model gives outputs of the shape {list(logits.shape)} for {count} examples: "
            f"their first dimension must be {count}."
        )
    return logits.detach().to("cpu", torch.float32)


def _same_shape(given: Tensor, outputs: Tensor, done: int) -> None:
    if given.shape[1:] != outputs.shape[1:]:
        raise DataError(
            f"The outputs' shape changes from {list(outputs.shape[1:])} to "
            f"{list(given.shape[1:])} per example, first in the batch at example {done + 1}. "
            "Pad all examples to one length."
        )


def _unusable(given: Tensor) -> int:
    """Number of examples with NaN or +Inf; -Inf is a logit that rules a class out."""
    bad = torch.isnan(given) | torch.isposinf(given)
    return int(bad.flatten(1).any(1).sum()) if bad.dim() > 1 else int(bad.sum())


def detect_kind(outputs: Tensor, task: Task) -> Kind:
    """Whether outputs are logits, probabilities or values.

    Rows of numbers >= 0 that all sum to one (within 5e-3) are probabilities; so are single
    outputs per example that all lie in [0, 1]. Logarithms of probabilities count as logits: both
    become the same log-probabilities.

    Args:
        outputs: [example, class], [example, position, class], or [example] or [example, 1] of a
            binary classifier.
        task: What the models are for.

    Raises:
        DataError: Outputs of a shape that the task does not have.

    Example:
        >>> detect_kind(torch.tensor([[0.25, 0.75]]), "classification")
        'probabilities'
    """
    if task == "regression":
        return "values"
    if task == "classification" and _is_single(outputs):
        return "probabilities" if bool(((outputs >= 0) & (outputs <= 1)).all()) else "logits"
    wanted = 3 if task == "tokens" else 2
    if outputs.dim() != wanted:
        shape = "[example, position, class]" if task == "tokens" else "[example, class]"
        raise DataError(f"Outputs for {task} have the shape {list(outputs.shape)}, not {shape}.")
    is_distribution = all(
        bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() <= SUM_TOLERANCE).all())
        for rows in torch.split(outputs, _rows_per_block(outputs))
    )
    return "probabilities" if is_distribution else "logits"


def log_probabilities(outputs: Tensor, kind: Kind, *, memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """Log-probabilities from logits or probabilities: log_softmax(z), or log(p / Σp).

    A single logit z per example becomes the two classes [0, z], a single probability p becomes
    [1 - p, p]. All results are finite: a probability of zero counts as float32's smallest normal
    number (1.2e-38), and a logit of -Inf becomes -1e4.

    Args:
        outputs: [example, *, class], [example] or [example, 1].
        kind: What they are, as ``detect_kind`` says. "values" are returned unchanged.
        memory_limit: Bytes of results kept in memory; larger ones are memory-mapped.

    Shapes:
        [example, *, class] -> [example, *, class], float32

    Example:
        >>> log_probabilities(torch.tensor([[0.0], [0.0]]), "logits").exp()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    if kind == "values":
        return outputs
    if _is_single(outputs):
        outputs = _two_classes(outputs.reshape(len(outputs), 1).float(), kind)
    logs = room(outputs.shape, memory_limit)
    size = _rows_per_block(outputs)
    for start in range(0, len(outputs), size):
        rows = outputs[start : start + size].float()
        logs[start : start + size] = (
            F.log_softmax(rows, -1).clamp(min=LOWEST) if kind == "logits" else _log_of(rows)
        )
    return logs


def _is_single(outputs: Tensor) -> bool:
    return outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1)


def _two_classes(single: Tensor, kind: Kind) -> Tensor:
    other = torch.zeros_like(single) if kind == "logits" else 1 - single
    return torch.cat([other, single], dim=1)


def _log_of(probabilities: Tensor) -> Tensor:
    return (probabilities / probabilities.sum(-1, keepdim=True)).clamp(min=SMALLEST).log()


def _rows_per_block(outputs: Tensor) -> int:
    return max(1, BLOCK // max(1, math.prod(outputs.shape[1:])))
