"""Decoupled distillation: the true class and the other classes weighed apart."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.distillation.contract import CLASSES, Compare, check_temperature, distillation_loss
from alloykit.distillation.outputs import divergence, tempered
from alloykit.errors import InvalidParameter, MissingInput


@distillation_loss(
    tasks=CLASSES,
    labels=True,
    formula="T² · (α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s)),  b = (p_y, 1 - p_y),  p̂ = p without y",
    paper="Zhao et al., Decoupled knowledge distillation, 2022, arXiv:2203.08679.",
)
def decoupled(
    true_class: float = 1.0, other_classes: float = 8.0, temperature: float = 4.0
) -> Compare:
    """KL taken apart: how sure of the true class, and how the other classes compare.

    loss = T² · (α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s)), b = (p_y, 1 - p_y), p̂ = softmax without y

    Use it when the teacher is so sure of the true class that ``kl`` hardly sees the rest. It needs
    labels. With β = 1 - p_y of the teacher and α = 1 it would be ``kl``.

    Args:
        true_class: α >= 0, the weight of the first term; 1 is the paper's.
        other_classes: β >= 0, the weight of the second; 8 is the paper's for CIFAR-100.
        temperature: T > 0; 4 is the paper's.

    Shapes:
        student, teacher [row, class], labels [row] -> [row]

    Raises:
        InvalidParameter: A temperature of zero or below, or a negative weight.
        MissingInput: No labels.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 0.0]])
        >>> decoupled(temperature=1.0)(student, teacher, torch.tensor([0]))
        tensor(0.9213)

    References:
        Zhao, Cui, Song, Qiu, Liang, Decoupled knowledge distillation, 2022, arXiv:2203.08679,
        equation 7. The authors take log(softmax), which is -Inf in half precision, and let the
        weight grow over 20 epochs; ours stays in logarithms and is constant.
    """
    check_temperature(temperature, "decoupled")
    if not (true_class >= 0 and other_classes >= 0):
        raise InvalidParameter(
            "The 'true_class' and 'other_classes' of decoupled must be at least 0. "
            f"Got {true_class:g} and {other_classes:g}."
        )

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise MissingInput("The loss decoupled needs labels.")
        sure_p, others_p = _apart(tempered(teacher, temperature), labels)
        sure_q, others_q = _apart(tempered(student, temperature), labels)
        first, second = divergence(sure_p, sure_q), divergence(others_p, others_q)
        return temperature**2 * (true_class * first + other_classes * second)

    return compare


def _apart(logs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [row, 2] of the true class and the rest; [row, class - 1] among the rest.

    They are picked instead of masked, so that no -Inf takes part.
    """
    classes = torch.arange(logs.shape[-1] - 1, device=logs.device)
    others = logs.gather(1, classes + (classes >= labels[:, None]).long())
    true = logs.gather(1, labels[:, None])
    return torch.cat([true, others.logsumexp(1, keepdim=True)], 1), others.log_softmax(1)
