"""BatchNorm statistics estimated anew, which averaged parameters need."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from alloykit.data.batches import Batch, Inputs, forward, length, placed
from alloykit.errors import DataError
from alloykit.evaluation.predicting import evaluating


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics of its batches."""
    return bool(_layers(model))


def update_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Estimate the running means and variances of all BatchNorm layers from these batches.

    Each statistic becomes the plain mean over the batches, as ``torch.optim.swa_utils.update_bn``
    makes it; unlike there only the BatchNorm layers run in training mode, so dropout stays off.
    A batch with one value per channel, which has no variance, is left out. Use it after averaging
    parameters, with training inputs; parameters are not changed.

    Args:
        model: Changed in place; its training flags and momenta are restored.
        batches: Pairs (inputs, targets); the targets are not looked at.

    Returns:
        The number of layers estimated; 0 where the model has none, and then nothing is read.

    Raises:
        DataError: There are layers, but no batch that has a variance.

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson: Averaging Weights Leads to Wider Optima
        and Better Generalization, 2018, arXiv 1803.05407, section 3.2.
    """
    layers = _layers(model)
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    seen = 0
    with evaluating(model):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.training = True
            for inputs, _ in batches:
                seen += _estimated(model, layers, placed(inputs, model))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    if not seen:
        raise DataError(
            f"The statistics of {len(layers)} BatchNorm layers need at least one batch of two or "
            "more examples. Give more data, or a larger batch_size."
        )
    return len(layers)


def _estimated(model: nn.Module, layers: list[_BatchNorm], inputs: Inputs) -> bool:
    """Run one batch; False, and no statistic changed, where it has one value per channel."""
    single = length(inputs) == 1
    before = [[b.clone() for b in layer.buffers()] for layer in layers] if single else []
    try:
        forward(model, inputs)
    except ValueError as error:
        if not single or "more than 1 value per channel" not in str(error):
            raise
        for layer, kept in zip(layers, before, strict=True):
            for buffer, value in zip(layer.buffers(), kept, strict=True):
                buffer.copy_(value)
        return False
    return True


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, torch.Tensor)
    ]
