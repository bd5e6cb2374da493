"""Kullback-Leibler divergence from the teacher to the student."""

from __future__ import annotations

from torch import Tensor

from alloykit.distillation.contract import CLASSES, Compare, check_temperature, distillation_loss
from alloykit.distillation.outputs import divergence, tempered


@distillation_loss(
    tasks=CLASSES,
    coarse=True,
    formula="T² · KL(softmax(t/T) ‖ softmax(s/T))",
    paper="Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv:1503.02531.",
)
def kl(temperature: float = 2.0) -> Compare:
    """Forward KL divergence: the student covers every class that the teacher believes in.

    loss = T² · Σ p (log p - log q), p = softmax(t/T) of the teacher, q = softmax(s/T)

    Use it when in doubt: it is the loss that other losses are compared with. The direction is
    KL(teacher ‖ student). The factor T² keeps the gradient's size the same at every temperature,
    so that alpha means the same at every temperature.

    Args:
        temperature: T > 0; 1 leaves the teacher's probabilities as they are, 2 (a common default)
            to 4 soften them. Above about 8 it is nearly the squared error of centred logits.

    Shapes:
        student, teacher [row, class] -> [row]; the mean over rows is torch's "batchmean"

    Raises:
        InvalidParameter: A temperature of zero or below.

    Example:
        >>> import torch
        >>> kl()(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor(0.4438)

    References:
        Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015,
        arXiv:1503.02531, section 2. They write a cross-entropy; its gradient is the same.
    """
    check_temperature(temperature, "kl")

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        loss = divergence(tempered(teacher, temperature), tempered(student, temperature))
        return temperature**2 * loss

    return compare
