"""Squared error between features of the student and of the teacher."""

from __future__ import annotations

from torch import Tensor

from alloykit.distillation.contract import EXAMPLES, Compare, distillation_loss


@distillation_loss(
    tasks=EXAMPLES,
    source="features",
    formula="(1/2d) ‖u - r(v)‖²",
    paper="Romero et al., FitNets: hints for thin deep nets, 2014, arXiv:1412.6550.",
)
def hint() -> Compare:
    """Let a layer of the student imitate a layer of the teacher.

    loss = (1/2d) ‖u - r(v)‖², u the teacher's features, v the student's, d their width

    Use it when outputs say too little: few classes, or a student that starts blank and is deep.
    Where the widths differ, the run trains a linear map r with the student and throws it away
    afterwards. Give it a companion that trains the output: ``loss={"kl": 1, "hint": 1}``.

    Shapes:
        student, teacher [row, width] -> [row]

    Example:
        >>> import torch
        >>> hint()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(0.2500)

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, FitNets: hints for thin deep nets, 2014,
        arXiv:1412.6550, equation 3. They train the hint first and the output afterwards, and map
        with a convolution; we train both at once, average features over positions, and divide by
        the width.
    """

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return 0.5 * (student - teacher).square().flatten(1).mean(1)

    return compare
