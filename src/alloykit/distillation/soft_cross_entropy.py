"""Cross-entropy with the teacher's probabilities as targets."""

from __future__ import annotations

from torch import Tensor

from alloykit.distillation.contract import CLASSES, Compare, check_temperature, distillation_loss
from alloykit.distillation.outputs import tempered


@distillation_loss(
    tasks=CLASSES,
    coarse=True,
    formula="-T² · Σ softmax(t/T) log softmax(s/T)",
    paper="Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv:1503.02531.",
)
def soft_cross_entropy(temperature: float = 2.0) -> Compare:
    """Cross-entropy with soft targets: ``kl`` plus the teacher's entropy, which does not train.

    loss = -T² · Σ p log q, p = softmax(t/T) of the teacher, q = softmax(s/T)

    Use it when the teacher gives hard pseudo-labels: at T = 1 it is then exactly the usual
    cross-entropy. Its gradient is that of ``kl``; its value is not zero when the student agrees.

    Args:
        temperature: T > 0; 2 is the default of ``kl``.

    Shapes:
        student, teacher [row, class] -> [row]

    Raises:
        InvalidParameter: A temperature of zero or below.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[0.0, -1e4]])
        >>> soft_cross_entropy(temperature=1.0)(torch.tensor([[0.0, 0.0]]), sure)
        tensor(0.6931)

    References:
        Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015,
        arXiv:1503.02531, section 2.
    """
    check_temperature(temperature, "soft_cross_entropy")

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        soft = tempered(teacher, temperature).exp()
        return -(temperature**2) * (soft * tempered(student, temperature)).sum(-1)

    return compare
