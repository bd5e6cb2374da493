"""Metrics of log-probabilities [unit, class] against class numbers [unit].

A unit is an example, or a scored token. Every metric has a value, computed by torchmetrics or
torch; all but AUROC also have contributions per unit whose sums give the same value, so that a
bootstrap resamples sums instead of examples.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor

from alloykit.data.splits import IGNORED
from alloykit.errors import DataError

Array: TypeAlias = NDArray[np.float64]

FLOOR = math.log(np.finfo(np.float64).eps)
"""-36.04: no log-probability counts as less, as in scikit-learn's ``log_loss`` on float64."""

BINS = 15


def units(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and targets of everything scored, and which example each belongs to.

    Args:
        outputs: [example, class], or [example, position, class].
        targets: [example], or [example, position] with -100 for positions that are not scored.

    Raises:
        DataError: The shapes do not fit, or a target is no class.

    Shapes:
        -> [unit, class], [unit], [unit]
    """
    if outputs.shape[:-1] != targets.shape or targets.is_floating_point():
        raise DataError(
            f"Outputs of the shape {list(outputs.shape)} do not fit targets of the shape "
            f"{list(targets.shape)} and {targets.dtype}: give one class number per row."
        )
    classes, targets = outputs.shape[-1], targets.long()
    owner = torch.arange(len(targets))
    if targets.dim() > 1:
        owner = owner[:, None].expand_as(targets).flatten()
        outputs, targets = outputs.flatten(0, 1), targets.flatten()
        if bool((targets == IGNORED).any()):
            scored = targets != IGNORED
            outputs, targets, owner = outputs[scored], targets[scored], owner[scored]
    if not len(targets):
        raise DataError("There is nothing to score: no examples, or all targets are -100.")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(
            f"The targets reach from {int(targets.min())} to {int(targets.max())}, and the "
            f"outputs have {classes} classes: targets must be 0 to {classes - 1}."
        )
    return outputs, targets, owner


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of units whose most probable class is the target; ties go to the lower class."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return _value(multiclass_accuracy, outputs, targets, average="micro")


def precision(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of TP / (TP + FP); 0 where a class is never predicted.

    Classes absent from both targets and predictions are left out, as scikit-learn does with
    ``average="macro", zero_division=0``.
    """
    from torchmetrics.functional.classification import multiclass_precision

    return _value(multiclass_precision, outputs, targets, average="macro")


def recall(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of TP / (TP + FN); classes are left out as in ``precision``."""
    from torchmetrics.functional.classification import multiclass_recall

    return _value(multiclass_recall, outputs, targets, average="macro")


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN); classes are left out as in ``precision``."""
    from torchmetrics.functional.classification import multiclass_f1_score

    return _value(multiclass_f1_score, outputs, targets, average="macro")


def log_loss(outputs: Tensor, targets: Tensor) -> float:
    """Mean of -log p(target), each at most 36.04.

    The limit is that of scikit-learn on float64 probabilities; it keeps one confident mistake of
    a hard vote, whose probabilities can be zero, from making the mean infinite.
    """
    return float(_losses(outputs, targets).mean())


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """The exponential of ``log_loss``."""
    return math.exp(log_loss(outputs, targets))


def brier(outputs: Tensor, targets: Tensor) -> float:
    """Mean over units of Σ over classes of (p - 1[class = target])², in [0, 2].

    For two classes that is twice scikit-learn's ``brier_score_loss`` of the positive class.
    """
    return float(_brier(outputs, targets).mean())


def ece(outputs: Tensor, targets: Tensor) -> float:
    """Expected calibration error: Σ over 15 equal bins of (n_bin / n)·|accuracy - confidence|.

    Confidence is the largest probability. As in torchmetrics, bins hold their lower edge, and a
    confidence of exactly one is a bin of its own.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, 2017,
        arXiv 1706.04599, equation 3.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    found = multiclass_calibration_error(
        probabilities(outputs),
        targets,
        num_classes=outputs.shape[1],
        n_bins=BINS,
        norm="l1",
        validate_args=False,
    )
    return _number(found)


def auroc(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of the area under the ROC curve of that class against the rest.

    The mean goes over the classes that occur in the targets; NaN where fewer than two do.
    """
    present, positive = np.unique(targets.numpy(), return_inverse=True)
    if len(present) < 2:
        return math.nan
    # By ranks (Mann and Whitney): the same number as torchmetrics', fifteen times as fast, which
    # counts where it is computed anew for every resample.
    ranks = rankdata(probabilities(outputs)[:, torch.from_numpy(present)].numpy(), axis=0)
    hits = positive[:, None] == np.arange(len(present))
    count = hits.sum(axis=0)
    above = (ranks * hits).sum(axis=0) - count * (count + 1) / 2
    return float((above / (count * (len(positive) - count))).mean())


def probabilities(outputs: Tensor) -> Tensor:
    """exp(log-probabilities); clamped, since torchmetrics applies a softmax to 1.0000001."""
    return outputs.float().exp().clamp(max=1.0)


def _value(function: Any, outputs: Tensor, targets: Tensor, average: str) -> float:
    found = function(
        outputs.argmax(1),
        targets,
        num_classes=outputs.shape[1],
        average=average,
        validate_args=False,
    )
    return _number(found)


def _number(found: Tensor) -> float:
    """The seven digits that torchmetrics' float32 holds: 0.7912, and not 0.7911999821662903."""
    return float(f"{float(found):.7g}")


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(outputs, targets, reduction="none").double().clamp(max=-FLOOR)


def _brier(outputs: Tensor, targets: Tensor) -> Tensor:
    """Σ p² - 2·p(target) + 1, which needs no one-hot rows."""
    likely = probabilities(outputs).double()
    chosen = likely.gather(1, targets[:, None])[:, 0]
    return likely.square().sum(1) - 2 * chosen + 1


# Contributions: [unit, k]; the first column counts units. Finish: sums [resample, k] -> [resample].


def hits(outputs: Tensor, targets: Tensor) -> Array:
    """Count and correct answers of each unit."""
    return _with_count(outputs.argmax(1) == targets)


def losses(outputs: Tensor, targets: Tensor) -> Array:
    """Count and -log p(target) of each unit."""
    return _with_count(_losses(outputs, targets))


def squared_errors(outputs: Tensor, targets: Tensor) -> Array:
    """Count and Brier score of each unit."""
    return _with_count(_brier(outputs, targets))


def class_counts(outputs: Tensor, targets: Tensor) -> sparse.csr_matrix:
    """Per class: true positives, predictions, targets; [unit, 1 + 3·class], three or four set."""
    classes, predicted = outputs.shape[1], outputs.argmax(1).numpy()
    wanted, row = targets.numpy(), np.arange(len(targets))
    right = predicted == wanted
    columns = [
        np.zeros_like(wanted),
        1 + wanted[right],
        1 + classes + predicted,
        1 + 2 * classes + wanted,
    ]
    rows = [row, row[right], row, row]
    shape = (len(wanted), 1 + 3 * classes)
    return _ones(rows, columns, shape)


def bin_gaps(outputs: Tensor, targets: Tensor) -> sparse.csr_matrix:
    """Per bin of confidence: correct answers minus confidences; [unit, 1 + 16]."""
    confidence, predicted = probabilities(outputs).max(1)
    edges = torch.linspace(0, 1, BINS + 1)
    which = torch.bucketize(confidence, edges, right=True).numpy()
    gap = (predicted == targets).double() - confidence.double()
    row = np.arange(len(which))
    data = np.concatenate([np.ones(len(row)), gap.numpy()])
    place = (np.concatenate([row, row]), np.concatenate([np.zeros_like(which), which]))
    return sparse.csr_matrix((data, place), shape=(len(row), BINS + 2))


def mean(sums: Array) -> Array:
    """Second column divided by the count."""
    return np.asarray(sums[:, 1] / sums[:, 0])


def exp_mean(sums: Array) -> Array:
    """The exponential of the mean."""
    return np.exp(mean(sums))


def macro_precision(sums: Array) -> Array:
    """Precision from per-class counts."""
    true, predicted, wanted = _per_class(sums)
    return _macro(true, predicted, (predicted + wanted) > 0)


def macro_recall(sums: Array) -> Array:
    """Recall from per-class counts."""
    true, predicted, wanted = _per_class(sums)
    return _macro(true, wanted, (predicted + wanted) > 0)


def macro_f1(sums: Array) -> Array:
    """F1 from per-class counts."""
    true, predicted, wanted = _per_class(sums)
    return _macro(2 * true, predicted + wanted, (predicted + wanted) > 0)


def binned_error(sums: Array) -> Array:
    """Expected calibration error from per-bin gaps."""
    return np.asarray(np.abs(sums[:, 1:]).sum(1) / sums[:, 0])


def _with_count(values: Tensor) -> Array:
    return np.stack([np.ones(len(values)), values.double().numpy()], axis=1)


def _ones(rows: list[Any], columns: list[Any], shape: tuple[int, int]) -> sparse.csr_matrix:
    place = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.ones(len(place[0])), place), shape=shape)


def _per_class(sums: Array) -> list[Array]:
    return np.split(sums[:, 1:], 3, axis=1)


def _macro(part: Array, whole: Array, present: NDArray[np.bool_]) -> Array:
    ratio = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return np.asarray((ratio * present).sum(1) / present.sum(1))
