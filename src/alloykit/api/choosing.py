"""The verbs that choose on validation data: soup, an average; tune, a parameter of a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from alloykit.api.inputs import (
    Models,
    in_order,
    opened_base,
    sources_of,
)
from alloykit.api.planning import planned
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
from alloykit.soups.tune import Rule, Tunable, tuned
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
    template = _template(models, module, "Soups run")
    judge = _judge(template, validation, measure, higher_is_better, task, batch_norm)
    checkpoints = open_members(models)
    origin = opened_base(base, trust_pickle=False)
    choice: Choice = soups.build(method, **(parameters or {}))(checkpoints, judge, origin)
    plan = plan_merge(
        checkpoints, choice.method, choice.parameters, weights=choice.weights, base=origin
    )
    merged = merge_in_memory(plan, checkpoints, origin)
    return _result(models, merged, choice, judge)


def tune(
    models: Models,
    method: str,
    parameter: str,
    values: Sequence[Any] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    points: int = 12,
    rule: Rule = "best",
    prefer: float | None = None,
    validation: Any,
    module: nn.Module | None = None,
    base: Any = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    compat: str | None = None,
    stats: Mapping[str, Any] | None = None,
    seed: int = 0,
    measure: str | Callable[..., float] | Metric | None = None,
    higher_is_better: bool | None = None,
    task: Task = "classification",
    batch_norm: Any = None,
) -> SoupResult:
    """Choose one parameter of a merge method on validation data, by a grid or golden section.

    Use it for the scale of any method that walks along task vectors: tuning it moves results more
    than the choice of the method does. With some hundred validation examples take the rule
    "one_se": their noise can make a tuned value worse than the default.

    Args:
        models: As in ``merge``.
        method: Registered merge method.
        parameter: The parameter to choose: any that is a number, such as "scale" or "density".
        values: What to try, one after the other.
        bounds: Or the ends of an interval to search by golden section.
        points: Merges that the golden section may try, at least 3.
        rule: "best", or "one_se": of the values within one standard error of the best the one
            nearest to ``prefer``.
        prefer: The value to stay near; by default the method's own default, where that is a number.
        validation: The data that chooses.
        module: A module of the architecture, where the models are files or state dicts.
        base: As in ``merge``.
        weights: As in ``merge``.
        parameters: The method's other parameters.
        compat: As in ``merge``.
        stats: As in ``merge``.
        seed: As in ``merge``.
        measure: Metric to choose by, as in ``soup``.
        higher_is_better: The direction of a callable.
        task: How outputs and targets are read.
        batch_norm: Data to re-estimate BatchNorm statistics on before each trial; by default the
            validation inputs.

    Returns:
        The merged model, and the choice: its parameters, validation value and every trial.

    Raises:
        InvalidParameter: A parameter that the method does not have, or values that it refuses.

    Example:
        >>> import torch
        >>> models = [nn.Linear(1, 2), nn.Linear(1, 2)]
        >>> data = (torch.tensor([[1.0], [-1.0]]), [0, 1])
        >>> found = tune(models, "exponential", "decay", [0.5, 0.9], validation=data)
        >>> sorted(found.choice.parameters)
        ['decay']
    """
    models = several(models)
    template = _template(models, module, "Tuning runs")
    judge = _judge(template, validation, measure, higher_is_better, task, batch_norm)
    given = {**(parameters or {}), **({"compat": compat} if compat else {})}
    tried = values[0] if values is not None and len(values) else sum(bounds or (0.0,)) / 2.0
    job = planned(
        models, method, base=base, weights=weights, stats=stats, seed=seed,
        parameters={**given, parameter: tried},
    )  # fmt: skip
    tunable = Tunable(
        job.checkpoints, method, parameter, given, in_order(weights, job.checkpoints), job.origin,
        job.stats, seed,
    )  # fmt: skip
    choice = tuned(
        tunable, judge, values=values, bounds=bounds, points=points, rule=rule, prefer=prefer
    )
    return _result(models, tunable.merged(choice.parameters[parameter]), choice, judge)


def _template(models: Models, module: nn.Module | None, what: str) -> nn.Module:
    template = module if module is not None else sources_of(models)[0]
    if not isinstance(template, nn.Module):
        raise MissingInput(f"{what} the models: pass module=, a module of their architecture.")
    return template


def _judge(
    template: nn.Module,
    validation: Any,
    measure: str | Callable[..., float] | Metric | None,
    higher_is_better: bool | None,
    task: Task,
    batch_norm: Any,
) -> Judge:
    examples = as_examples(validation, "validation")
    return Judge(
        template,
        examples,
        metric(measure or default_metric(task), higher_is_better=higher_is_better, task=task),
        task,
        batch_norm=examples if batch_norm is None else as_examples(batch_norm, "train"),
    )


def _result(
    models: Models, merged: Mapping[str, Tensor], choice: Choice, judge: Judge
) -> SoupResult:
    if choice.mixes and has_batch_norm(judge.module):
        held = open_checkpoint(judge.loaded(merged))
        merged = {name: held.read(name).to(tensor.dtype) for name, tensor in merged.items()}
    return SoupResult(in_form_of(sources_of(models)[0], merged), choice)
