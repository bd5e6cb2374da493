"""A temperature fitted after pooling, around any rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alloykit.ensembling.rule import CLASSES, Pooling, ensemble_rule, learned, starting_state
from alloykit.errors import InvalidParameter
from alloykit.evaluation.calibration import fit_temperature
from alloykit.registry import ensemble_rules
from alloykit.types import EnsembleRule, State


@ensemble_rule(
    tasks=CLASSES,
    fits=True,
    keeps="winner",
    candidates=(
        {"of": "average"},
        {"of": "average", "parameters": {"space": "logits"}},
        {"of": "weighted", "parameters": {"by": "log_loss"}},
        {"of": "vote"},
    ),
    formula="softmax(log p / T), with p what the rule pooled",
    paper="Guo et al., On calibration of modern neural networks, 2017, arXiv:1706.04599.",
)
def calibrated(of: str = "average", parameters: Mapping[str, Any] | None = None) -> Pooling:
    """Fit another rule, then one temperature on what it pooled.

    p = softmax(log p_rule / T); T minimises the log loss on the data that the rule was fitted on

    Use it whenever the probabilities matter and not only the winning class. A mixture of
    calibrated members is under-confident, so the temperature belongs after the pooling, not
    before: dividing each member's logits first makes the mixture worse. The winning class never
    changes.

    Args:
        of: The name of a rule for classes.
        parameters: That rule's parameters.

    Shapes:
        stack [member, example, class] -> [example, class]
        state: the rule's own, and temperature []

    Raises:
        UnknownName, InvalidParameter: The rule cannot be built, or does not serve classes.

    Example:
        >>> stack = torch.tensor([[[0.6, 0.4]], [[0.6, 0.4]]]).log().expand(2, 10, 2)
        >>> targets = torch.tensor([0] * 9 + [1])
        >>> made = calibrated("average")
        >>> round(float(made.combine(stack, made.fit(stack, targets)).exp()[0, 0]), 3)
        0.9

    References:
        Guo, Pleiss, Sun, Weinberger, 2017, arXiv:1706.04599, section 4.2, applied to the pooled
        log-probabilities, which serve as logits.
    """
    if of == "calibrated":
        raise InvalidParameter("calibrated cannot hold itself: one temperature is all there is.")
    inner: EnsembleRule = ensemble_rules.build(of, **dict(parameters or {}))
    tasks = frozenset(inner.tasks & CLASSES)
    if not tasks:
        raise InvalidParameter(f"calibrated needs a rule for classes; {of} serves regression.")

    def combine(stack: Tensor, state: State) -> Tensor:
        temperature = learned(state, "temperature", "calibrated").to(stack.device)
        pooled: Tensor = inner.combine(stack, state) / temperature
        return pooled.log_softmax(-1)

    def fit(stack: Tensor, targets: Tensor) -> State:
        state = inner.fit(stack, targets) if inner.fit else starting_state(inner, len(stack))
        temperature = fit_temperature(inner.combine(stack, state), targets)
        return {**state, "temperature": torch.tensor(temperature, dtype=torch.float64)}

    return Pooling(combine, fit, tasks)
