"""Squared error between the values of student and teacher."""

from __future__ import annotations

from torch import Tensor

from alloykit.distillation.contract import VALUES, Compare, distillation_loss


@distillation_loss(
    tasks=VALUES,
    formula="(1/d) ‖y_s - y_t‖²",
    paper="Buciluǎ et al., Model compression, 2006.",
)
def values() -> Compare:
    """Squared error between what the student and the teacher predict.

    loss = (1/d) ‖y_s - y_t‖², d the number of values per example

    Use it when the task is regression; an average of several teachers carries less noise than the
    labels.

    Shapes:
        student, teacher [row, *output] -> [row]

    Example:
        >>> import torch
        >>> values()(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(2.)

    References:
        Buciluǎ, Caruana, Niculescu-Mizil, Model compression, 2006, section 2.
    """

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return (student - teacher).square().reshape(len(student), -1).mean(1)

    return compare
