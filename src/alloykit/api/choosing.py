"""The verb soup: an average that validation data chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from alloykit.api.inputs import (
    Models,
    opened_base,
    sources_of,
)
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.comparison.study import default_metric
from alloykit.data.examples import as_examples
from alloykit.errors import MissingInput
from alloykit.evaluation.batch_norm import has_batch_norm
from alloykit.evaluation.metrics import Metric, metric
from alloykit.execution.members import open_members, several
from alloykit.execution.plan import plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import merge_in_memory
from alloykit.registry import soups
from alloykit.soups.contract import Choice
from alloykit.soups.judge import Judge
from alloykit.types import Task


@dataclass(frozen=True)
class SoupResult:
    """A soup and how it was chosen.

    Attributes:
        model: The merged model, in the form of the first member.
        choice: Weights, validation value and every trial.
    """

    model: Any
    choice: Choice


def soup(
    models: Models,
    method: str = "greedy",
    *,
    validation: Any,
    module: nn.Module | None = None,
    base: Any = None,
    measure: str | Callable[..., float] | Metric | None = None,
    higher_is_better: bool | None = None,
    task: Task = "classification",
    batch_norm: Any = None,
    parameters: Mapping[str, Any] | None = None,
) -> SoupResult:
    """Choose an average on validation data: greedy, learned, uniform, or along a line to a base.

    Args:
        models: As in ``merge``.
        method: "greedy", "learned", "uniform" or "interpolation".
        validation: The data that chooses.
        module: A module of the architecture, where the models are files or state dicts.
        base: For "interpolation", where alpha is 0.
        measure: Metric to choose by: a name, or a callable (outputs, targets) -> number; the
            task's main metric by default.
        higher_is_better: The direction of a callable.
        task: How outputs and targets are read.
        batch_norm: Data to re-estimate BatchNorm statistics on before each trial; by default the
            validation inputs.
        parameters: The method's own.

    Returns:
        The merged model and how it was chosen. On validation a greedy soup is never worse than
        the best member, a learned one never worse than the plain average.
    """
    models = several(models)
    first = sources_of(models)[0]
    template = module if module is not None else first
    if not isinstance(template, nn.Module):
        raise MissingInput("Soups run the models: pass module=, a module of their architecture.")
    checkpoints = open_members(models)
    origin = opened_base(base, trust_pickle=False)
    examples = as_examples(validation, "validation")
    judge = Judge(
        template,
        examples,
        metric(measure or default_metric(task), higher_is_better=higher_is_better, task=task),
        task,
        batch_norm=examples if batch_norm is None else as_examples(batch_norm, "train"),
    )
    choice: Choice = soups.build(method, **(parameters or {}))(checkpoints, judge, origin)
    plan = plan_merge(
        checkpoints, choice.method, choice.parameters, weights=choice.weights, base=origin
    )
    merged = merge_in_memory(plan, checkpoints, origin)
    if choice.mixes and has_batch_norm(template):
        held = open_checkpoint(judge.loaded(merged))
        merged = {name: held.read(name).to(tensor.dtype) for name, tensor in merged.items()}
    return SoupResult(in_form_of(first, merged), choice)
