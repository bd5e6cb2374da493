"""The plain average of the members' predictions."""

from __future__ import annotations

from alloykit.ensembling.pooling import Space, pool, tasks_of
from alloykit.ensembling.rule import EVERY_TASK, Pooling, ensemble_rule


@ensemble_rule(
    tasks=EVERY_TASK,
    fits=False,
    candidates=({"space": "probabilities"}, {"space": "logits"}, {"space": "values"}),
    formula="p = (1/M) Σ pₘ   or   softmax((1/M) Σ log pₘ)",
    paper="Lakshminarayanan et al., Deep ensembles, 2017, arXiv:1612.01474.",
)
def average(space: Space = "probabilities") -> Pooling:
    """Average what the members predict: probabilities, logits, or values.

    probabilities: p = (1/M) Σ pₘ; logits: p = softmax((1/M) Σ log pₘ); values: y = (1/M) Σ yₘ

    Use it when nothing is known of the members: it needs no data, and it is the bar that every
    other rule has to clear. Keep to probabilities when members saw different classes: in the
    logits one member's confident "never" outvotes everybody else.

    Args:
        space: What is averaged. "logits" averages log-probabilities, which differ from raw logits
            by a constant per row that the softmax takes out again. "geometric" is the renormalised
            geometric mean of the probabilities; exp(mean log p) / Σ is softmax(mean log p), so
            that it is the same rule as "logits" under the name of another tradition. "values" is
            the one for regression.

    Shapes:
        stack [member, example, class] -> [example, class]

    Raises:
        InvalidParameter: An unknown space.

    Example:
        >>> import torch
        >>> stack = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]]]).log()
        >>> average().combine(stack, {}).exp()
        tensor([[0.7500, 0.2500]])

    References:
        Lakshminarayanan, Pritzel, Blundell, Simple and scalable predictive uncertainty estimation
        using deep ensembles, 2017, arXiv:1612.01474, section 2.4. For regression we average the
        predicted means only; their mixture of Gaussians also pools variances.
    """
    return Pooling(
        combine=lambda stack, _state: pool(stack, None, space),
        tasks=tasks_of(space),
    )
