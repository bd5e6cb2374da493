"""The generalised Jensen-Shannon divergence between teacher and student."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alloykit.distillation.contract import CLASSES, Compare, check_temperature, distillation_loss
from alloykit.distillation.outputs import divergence, tempered
from alloykit.errors import InvalidParameter


@distillation_loss(
    tasks=CLASSES,
    coarse=True,
    formula="T² · (β KL(p ‖ m) + (1-β) KL(q ‖ m)),  m = β p + (1-β) q",
    paper="Agarwal et al., On-policy distillation of language models, 2023, arXiv:2306.13649.",
)
def jsd(beta: float = 0.5, temperature: float = 2.0) -> Compare:
    """Generalised Jensen-Shannon divergence: bounded, between forward and reverse KL.

    loss = T² · (β KL(p ‖ m) + (1-β) KL(q ‖ m)), m = β p + (1-β) q, p the teacher, q the student

    Use it when the student is far from a very sure teacher: it never exceeds T² log 2. At β = 0
    it is ``kl``, at β = 1 ``reverse_kl``, as in TRL; those ends are by convention, since the
    formula itself vanishes there.

    Args:
        beta: β in [0, 1], the teacher's share in the mixture; 0.5 is the symmetric divergence.
        temperature: T > 0; 2 is the default of ``kl``.

    Shapes:
        student, teacher [row, class] -> [row]

    Raises:
        InvalidParameter: A temperature of zero or below, or beta outside [0, 1].

    Example:
        >>> jsd(temperature=1.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([[200.0, 0.0]]))
        tensor(0.2158)

    References:
        Agarwal, Vieillard, Zhou et al., On-policy distillation of language models: learning from
        self-generated mistakes, 2023, arXiv:2306.13649, equation 1. TRL's generalized_jsd_loss
        leaves out T²; at T = 1 the two are equal.
    """
    check_temperature(temperature, "jsd")
    if not 0 <= beta <= 1:
        raise InvalidParameter(
            f"The 'beta' of jsd must be in [0, 1]. Got {beta:g}. (0 is kl, 1 is reverse_kl.)"
        )

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        log_p, log_q = tempered(teacher, temperature), tempered(student, temperature)
        return temperature**2 * _between(log_p, log_q, beta)

    return compare


def _between(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return divergence(log_p, log_q)
    if beta == 1:
        return divergence(log_q, log_p)
    mixture = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * divergence(log_p, mixture) + (1 - beta) * divergence(log_q, mixture)
