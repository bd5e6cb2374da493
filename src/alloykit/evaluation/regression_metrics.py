"""Metrics of values [example, *output] against targets of the same shape.

Every metric has a value, computed by torchmetrics, and contributions per example whose sums give
the same value, so that a bootstrap resamples sums instead of examples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import DataError
from alloykit.evaluation.classification_metrics import Array


def aligned(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 [example, output].

    A single value per example may be [example] on one side and [example, 1] on the other, which
    plain subtraction would turn into a matrix.

    Raises:
        DataError: The shapes differ otherwise, or there are no examples.
    """
    if not len(targets):
        raise DataError("There is nothing to score: the split has no examples.")
    flat = [t.double().reshape(len(t), -1) for t in (outputs, targets)]
    singles = flat[0].shape == flat[1].shape and flat[0].shape[1] == 1
    if outputs.shape != targets.shape and not singles:
        raise DataError(
            f"Outputs of the shape {list(outputs.shape)} do not fit targets of the shape "
            f"{list(targets.shape)}: give one target for every output."
        )
    return flat[0], flat[1]


def mae(outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute error over all examples and outputs."""
    from torchmetrics.functional.regression import mean_absolute_error

    return float(mean_absolute_error(*aligned(outputs, targets)))


def mse(outputs: Tensor, targets: Tensor) -> float:
    """Mean squared error over all examples and outputs."""
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(*aligned(outputs, targets)))


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Square root of ``mse``; with several outputs one root of the mean over all of them."""
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(*aligned(outputs, targets), squared=False))


def r2(outputs: Tensor, targets: Tensor) -> float:
    """1 - Σ(t - y)² / Σ(t - mean t)², averaged over outputs; it can be negative.

    For constant targets it is 1 where all predictions are right, else 0, as in scikit-learn.
    """
    from torchmetrics.functional.regression import r2_score

    values, wanted = aligned(outputs, targets)
    if len(wanted) < 2:
        raise DataError("R2 compares with the mean of the targets, which needs 2 examples. Got 1.")
    centre, scale = _centre_and_scale(values, wanted)
    # torchmetrics takes sums of squares below 1e-4 for zero; R2 does not depend on the scale.
    return float(r2_score((values - centre) / scale, (wanted - centre) / scale))


def _centre_and_scale(values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the targets; of the errors where the targets are constant."""
    centre = wanted.mean(0)
    spread = (wanted - centre).square().mean(0).sqrt()
    error = (wanted - values).square().mean(0).sqrt()
    constant = (wanted == wanted[0]).all(0)
    scale = torch.where(constant, error, spread)
    return torch.where(constant, wanted[0], centre), torch.where(scale > 0, scale, 1.0)


def absolute_errors(outputs: Tensor, targets: Tensor) -> Array:
    """Count and mean absolute error of each example."""
    values, wanted = aligned(outputs, targets)
    return _with_count((values - wanted).abs().mean(1, keepdim=True))


def squared_errors(outputs: Tensor, targets: Tensor) -> Array:
    """Count and mean squared error of each example."""
    values, wanted = aligned(outputs, targets)
    return _with_count((values - wanted).square().mean(1, keepdim=True))


def moments(outputs: Tensor, targets: Tensor) -> Array:
    """Count and, per output, squared error, target and squared target, centred and scaled."""
    values, wanted = aligned(outputs, targets)
    centre, scale = _centre_and_scale(values, wanted)
    error, about = (values - wanted) / scale, (wanted - centre) / scale
    return _with_count(torch.cat([error.square(), about, about.square()], dim=1))


def root_mean(sums: Array) -> Array:
    """The root of the mean."""
    return np.asarray(np.sqrt(sums[:, 1] / sums[:, 0]))


def explained(sums: Array) -> Array:
    """R2 from moments; about the mean of the resample, as R2 of the resampled examples is."""
    error, first, second = np.split(sums[:, 1:], 3, axis=1)
    count = sums[:, :1]
    spread = second - first**2 / count
    varied = spread > 1e-9 * count
    ratio = np.divide(error, spread, out=np.zeros_like(error), where=varied)
    constant = np.where(error > 0, 0.0, 1.0)
    return np.asarray(np.where(varied, 1 - ratio, constant).mean(1))


def _with_count(values: Tensor) -> Array:
    return np.concatenate([np.ones((len(values), 1)), values.numpy()], axis=1)
