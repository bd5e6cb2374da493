"""The verb ensemble: predictions -> predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from alloykit.api.inputs import (
    named,
)
from alloykit.data.examples import as_examples
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.rule import build_rule, starting_state
from alloykit.ensembling.stack import member_stack
from alloykit.errors import MissingInput
from alloykit.evaluation.freezing import frozen_view
from alloykit.evaluation.predicting import detect_kind, predict
from alloykit.types import Kind, Task


def ensemble(
    members: Mapping[str, nn.Module] | Sequence[nn.Module],
    rule: str = "average",
    *,
    weights: Sequence[float] | None = None,
    validation: Any = None,
    task: Task = "classification",
    batched: bool = False,
    **parameters: Any,
) -> Ensemble:
    """Combine the predictions of models of any architectures into one ``nn.Module``.

    Use it when models predict the same thing and share no weights. The members stay frozen and in
    eval mode; yours share their tensors with it and keep their own flags. Save the result with
    ``save_exported``; it then loads without their source.

    Args:
        members: Modules with a common output, by name or in order.
        rule: Registered ensemble rule; ``alloykit.methods()`` lists them.
        weights: By hand, one per member; makes the rule "weighted" where it was "average".
        validation: Data to fit the rule on, where it learns something.
        task: How outputs are read.
        batched: Run members of one architecture as one call, checked against the loop first.
        **parameters: The rule's own.

    Raises:
        MissingInput: Fewer than two members, or a rule that learns without validation data.
        DataError: Members whose outputs differ in shape.
    """
    if len(members) < 2:
        raise MissingInput(f"An ensemble takes at least two models; {len(members)} was given.")
    if weights is not None:
        rule = "weighted" if rule == "average" else rule
        parameters["weights"] = list(weights)
    built = build_rule(rule, task=task, **parameters)
    kinds: list[Kind] | None = None
    modules = {name: frozen_view(module) for name, module in named(members).items()}
    state = starting_state(built, len(members))
    if built.fit is not None and weights is None:
        if validation is None:
            raise MissingInput(f"The rule {rule} learns from data: pass validation=.")
        examples = as_examples(validation, "validation")
        outputs = [predict(module, examples) for module in modules.values()]
        kinds = [detect_kind(output, task) for output in outputs]
        state = built.fit(member_stack(outputs, kinds, task), examples.targets)
    return Ensemble(modules, built, state, task=task, kinds=kinds, batched=batched)
