"""The log pool with one weight per member and class, as a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alloykit.ensembling.per_class import solved
from alloykit.errors import InvalidParameter
from alloykit.fusion.contract import CLASSES, OUTPUTS, Layer, fusion_head
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.numerics import is_number

FLOOR = -15.0
"""Log-probabilities below this count as this: e^-15 is 3 in ten million."""


@fusion_head(
    tasks=CLASSES,
    sources=OUTPUTS,
    formula="softmax over c of Σₘ Wₘ_c log pₘ_c + b_c",
    paper="Guo et al., On calibration of modern neural networks, 2017, arXiv:1706.04599.",
)
def log_pool(pull: float = 1.0) -> Layer:
    """Weigh every member separately for every class, in log space, solved to the optimum.

    p_c ∝ exp(Σₘ W[m, c] · max(log pₘ(c), -15) + b[c]); W, b minimise the log loss plus
    pull/(2N) · (‖W - 1/M‖² + ‖b‖²)

    Use it when members know different classes well and labelled examples are few: M·C + C numbers
    to learn, against M·C² + C of ``concat``. It is convex, it recalibrates at the same time, and
    its weights read directly: which member is believed for which class.

    Args:
        pull: Pull towards the plain log pool (W = 1/M, b = 0), > 0, in examples: scikit-learn's
            1/C, whose default is 1 as well.

    Shapes:
        member x [row, class] -> [row, class]

    Raises:
        InvalidParameter: ``pull`` not above zero.

    Example:
        >>> from alloykit.fusion.head import HeadData, HeadShape
        >>> members = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.1, 0.9]]]).log()
        >>> data = HeadData(tuple(members), torch.tensor([0, 1]))
        >>> fitted = log_pool().fit(data, HeadShape((2, 2), 2, "classification"))
        >>> bool(fitted.module.weight[1, 1] > fitted.module.weight[0, 1])
        True

    References:
        Vector scaling (Guo et al., On calibration of modern neural networks, 2017,
        arXiv:1706.04599, section 4.2) applied to all members at once; the pull is ours. It is the
        rule ``per_class`` with logarithms cut at -15, so that a member that was certain and wrong
        once does not lose all weight for that class.
    """
    if not is_number(pull) or not 0 < pull < float("inf"):
        raise InvalidParameter(f"The 'pull' of log_pool must be above 0. Got {pull!r}.")

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        module = LogPool(shape)
        stack = torch.stack(data.members).clamp_min(FLOOR)
        weight, bias, gradient = solved(stack, data.targets, pull)
        with torch.no_grad():
            module.weight.copy_(weight)
            module.bias.copy_(bias)
        return FittedHead(module, {"gradient": gradient})

    return Layer(LogPool, fit)


class LogPool(nn.Module):
    """``(members, context) -> [row, class]``: weighted sum of log-probabilities, renormalised."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        members = len(shape.widths)
        self.weight = nn.Parameter(torch.full((members, shape.outputs), 1 / members))
        self.bias = nn.Parameter(torch.zeros(shape.outputs))

    def forward(self, members: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Log-probabilities; a context is not looked at."""
        stack = torch.stack([member.to(self.weight) for member in members], dim=1)
        return ((self.weight * stack.clamp_min(FLOOR)).sum(1) + self.bias).log_softmax(-1)
