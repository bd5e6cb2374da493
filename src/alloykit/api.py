"""The public verbs: wiring of the rooms below, no arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.checkpoints.writing import write_safetensors
from alloykit.comparison.comparing import Comparison, Progress, run_comparison
from alloykit.comparison.diagnosis import diagnose_members
from alloykit.comparison.inspection import Inspection, inspect_checkpoints
from alloykit.comparison.report_data import Barrier
from alloykit.comparison.setting import Member, Setting, source_of
from alloykit.comparison.study import default_metric
from alloykit.data.examples import as_examples
from alloykit.data.splits import check_splits
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.rule import build_rule, starting_state
from alloykit.ensembling.stack import member_stack
from alloykit.errors import InvalidParameter, InvalidWeights, MissingInput
from alloykit.evaluation.batch_norm import has_batch_norm, update_batch_norm
from alloykit.evaluation.metrics import Metric, metric
from alloykit.evaluation.predicting import detect_kind, predict
from alloykit.evaluation.weighting import weights_from_scores
from alloykit.execution.members import open_members, several
from alloykit.execution.plan import Plan, plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import Progress as StepProgress
from alloykit.execution.run import merge_in_memory, merge_to_file
from alloykit.registry import ensemble_rules, merge_methods, soups
from alloykit.soups.contract import Choice
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint, Task

Models = Sequence[Any] | Mapping[str, Any]


def merge(
    models: Models,
    method: str = "linear",
    *,
    base: Any = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    normalize: bool = True,
    parameters: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    batch_norm: Any = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    trust_pickle: bool = False,
    progress: StepProgress | None = None,
) -> Any:
    """Merge models into one by any registered merge method.

    Args:
        models: A sequence of models, or a mapping from name to model; each a module, a state
            dict, a list of arrays, or the path of a checkpoint.
        method: Registered name; ``alloykit.methods()`` lists them.
        base: The model that they were fine-tuned from, for methods that need one; others leave
            it alone.
        weights: One non-negative number per model, in their order or by name; None is uniform.
        normalize: Divide the weights by their sum; False refuses weights that do not sum to one.
        parameters: The method's own parameters.
        dtype: Output dtype of averaged tensors; by default the models' own.
        seed: For methods that draw random numbers.
        batch_norm: Data to re-estimate BatchNorm statistics on, for modules: anything that
            ``compare`` takes as a split. Without it a warning says that they were averaged.
        output: A ``.safetensors`` file to write, with provenance, instead of returning tensors.
        overwrite: Whether an existing output may be replaced.
        trust_pickle: Open pickled checkpoints that refer to unknown classes (nothing is run).
        progress: Called before every tensor with its name, the number done, and the total.

    Returns:
        What the models are: a module, a state dict, a list of arrays; a state dict for files. The
        output's path where one is given.

    Raises:
        MissingInput: No models or one, or no base where one is needed.
        InvalidWeights: Weights that cannot be used.
        CheckpointError: Files that cannot be read, models that do not match, NaN inside them.
        OutputExists: The output exists, or is one of the inputs.

    Example:
        >>> merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"]
        tensor([0.5000, 0.5000])
    """
    models = several(models)
    target = None if output is None else _target(output)
    checkpoints = open_members(models, trust_pickle=trust_pickle)
    origin = _base(base, trust_pickle)
    plan = plan_merge(
        checkpoints,
        method,
        parameters,
        weights=_in_order(weights, checkpoints),
        strict_weights=not normalize,
        base=origin,
        dtype=dtype,
        seed=seed,
    )
    first = _sources(models)[0]
    if batch_norm is None:
        _warn_of_averaged_statistics(plan)
    elif not isinstance(first, nn.Module):
        raise MissingInput(
            "Re-estimating BatchNorm runs the model: give modules, or merge without batch_norm "
            "and call alloykit.update_batch_norm on the module that you load the result into."
        )
    files = _files([*_sources(models), base])
    if target is not None and batch_norm is None:
        return merge_to_file(
            plan, checkpoints, target, origin, progress=progress, overwrite=overwrite,
            inputs=files, metadata=_provenance(plan, models, checkpoints, base, origin),
        )  # fmt: skip
    tensors = merge_in_memory(plan, checkpoints, origin, progress=progress)
    merged = in_form_of(first, tensors)
    if batch_norm is not None:
        update_batch_norm(merged, as_examples(batch_norm, "train").batches())
    if target is None:
        return merged
    held = open_checkpoint(merged)
    write_safetensors(
        target, plan.specs(), ((name, held.read(name)) for name in tensors), overwrite=overwrite,
        inputs=files, metadata=_provenance(plan, models, checkpoints, base, origin),
    )  # fmt: skip
    return target


def average(
    models: Models,
    weights: Sequence[float] | Mapping[str, float] | str | None = None,
    *,
    recency: float | None = None,
    normalize: bool = True,
    validation: Any = None,
    task: Task = "classification",
    **options: Any,
) -> Any:
    """Average models: plainly, by hand-given weights, by a validation metric, or by recency.

    merged = Σ wᵢ · modelᵢ, with Σ wᵢ = 1

    Use it for checkpoints of one run or fine-tunes of one base. Models trained from different
    starts do not average: ``diagnose`` says so, ``ensemble`` combines them all the same.

    Args:
        models: As in ``merge``; two or more. For ``recency`` oldest first.
        weights: One number per model; or the name of a metric, such as "accuracy" or "perplexity",
            from which the weights are made (see ``evaluation.weighting`` for the map), for
            modules and with ``validation``; None is uniform.
        recency: Weigh by recency instead: each checkpoint ``recency`` times the next newer one.
        normalize: Divide the weights by their sum; False refuses weights that do not sum to one.
        validation: Data for weights by a metric: anything that ``compare`` takes as a split.
        task: How the outputs are read for weights by a metric.
        **options: ``dtype``, ``batch_norm``, ``output``, ``overwrite``, ``trust_pickle`` and
            ``progress`` as in ``merge``.

    Returns:
        As ``merge``.

    Raises:
        MissingInput: Fewer than two models, or a metric without validation data.
        InvalidWeights: Weights that are negative, NaN, all zero, or too few.

    Example:
        >>> average([{"w": torch.zeros(1)}, {"w": torch.ones(1)}], weights=[1, 3])["w"]
        tensor([0.7500])
    """
    models = several(models)
    if len(models) < 2:
        raise MissingInput("Averaging takes at least two models; one was given.")
    if recency is not None and not 0.0 <= recency <= 1.0:
        raise InvalidParameter(
            f"'recency' must be a number in [0, 1]. Got {recency}. (It is the ratio of one "
            "checkpoint's weight to the next newer one's; 1 is the mean.)"
        )
    if isinstance(weights, str):
        weights = _weights_by(weights, models, validation, task)
    if recency is None:
        return merge(models, "linear", weights=weights, normalize=normalize, **options)
    return merge(
        models, "exponential", weights=weights, normalize=normalize,
        parameters={"decay": recency}, **options,
    )  # fmt: skip


def interpolate(base: Any, model: Any, alpha: float = 0.5, **options: Any) -> Any:
    """Walk the straight line from a base to a model fine-tuned from it (WiSE-FT).

    merged = base + alpha · (model − base)

    Args:
        base: Where alpha is 0.
        model: Where alpha is 1.
        alpha: Place on the line; outside [0, 1] it extrapolates. ``soup`` with the method
            "interpolation" chooses it on validation data.
        **options: As in ``merge``.

    Example:
        >>> interpolate({"w": torch.zeros(1)}, {"w": torch.ones(1)}, alpha=0.25)["w"]
        tensor([0.2500])
    """
    return merge([model], "interpolate", base=base, parameters={"alpha": alpha}, **options)


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
    first = _sources(models)[0]
    template = module if module is not None else first
    if not isinstance(template, nn.Module):
        raise MissingInput("Soups run the models: pass module=, a module of their architecture.")
    checkpoints = open_members(models)
    origin = _base(base, trust_pickle=False)
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
    eval mode. Save the result with ``save_ensemble``; it then loads without their source.

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
    state, modules = starting_state(built, len(members)), list(_named(members).values())
    if built.fit is not None and weights is None:
        if validation is None:
            raise MissingInput(f"The rule {rule} learns from data: pass validation=.")
        examples = as_examples(validation, "validation")
        outputs = [predict(module, examples) for module in modules]
        kinds = [detect_kind(output, task) for output in outputs]
        state = built.fit(member_stack(outputs, kinds, task), examples.targets)
    return Ensemble(_named(members), built, state, task=task, batched=batched)


def inspect(models: Models, *, base: Any = None, trust_pickle: bool = False) -> Inspection:
    """Answer from the tensors alone whether models can be combined, and how far apart they are.

    Args:
        models: As in ``merge``; files are read piece by piece.
        base: The model that they were fine-tuned from: angles and signs are then those of the
            task vectors.
        trust_pickle: As in ``merge``.
    """
    origin = _base(base, trust_pickle)
    return inspect_checkpoints(open_members(models, trust_pickle=trust_pickle), origin)


def diagnose(
    members: Mapping[str, nn.Module] | Sequence[nn.Module],
    *,
    validation: Any,
    task: Task = "classification",
    batch_norm: Any = None,
) -> list[Barrier]:
    """Walk the straight line between members, and say whether averaging them will work.

    Args:
        members: Modules; those with the same tensors are joined two by two.
        validation: Data to measure the loss on (at most 2,000 examples are used).
        task: How outputs and targets are read.
        batch_norm: Data to re-estimate BatchNorm statistics on; by default validation's inputs.
    """
    examples = as_examples(validation, "validation")
    setting = Setting(
        members=tuple(Member(name, module) for name, module in _named(members).items()),
        validation=examples,
        test=examples,
        task=task,
        metric=metric(default_metric(task)),
        batch_norm=examples if batch_norm is None else as_examples(batch_norm, "train"),
    )
    return diagnose_members(setting, most_pairs=None)


def compare(
    members: Models,
    *,
    validation: Any,
    test: Any,
    train: Any = None,
    architecture: Callable[[], nn.Module] | None = None,
    base: Any = None,
    task: Task = "classification",
    measure: str | Callable[..., float] | Metric | None = None,
    higher_is_better: bool | None = None,
    candidates: Sequence[str] | None = None,
    ordered: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    on_overlap: str = "error",
    seed: int = 0,
    resamples: int = 1000,
    batch_size: int = 256,
    title: str = "Comparison",
    progress: Progress | None = None,
) -> Comparison:
    """Try every way of combining that applies, and say which is worth shipping.

    Validation chooses, test reports once. Each row carries its metrics with intervals, the paired
    gain over the best single member, and its costs; what does not apply says why.

    Args:
        members: Modules by name or in order; or checkpoints, with ``architecture``.
        validation: The split that chooses: (inputs, targets) arrays, a Dataset, a DataLoader, or a
            list of batches.
        test: The split that reports, in the same forms.
        train: Data whose inputs re-estimate BatchNorm statistics; by default validation's.
        architecture: Builds the module that checkpoints are loaded into.
        base: The model that members were fine-tuned from.
        task: "classification", "regression" or "tokens".
        measure: The main metric: a name, or a callable (outputs, targets) -> number.
        higher_is_better: The direction of a callable.
        candidates: Names of candidates or methods to try; None tries all.
        ordered: Whether the members are checkpoints of one run, oldest first.
        output: Folder for ``rows.jsonl`` and ``report.html``. A comparison interrupted there goes
            on where it stopped.
        overwrite: Start anew in a folder that holds another comparison.
        on_overlap: "error", "drop" (from validation) or "allow" for examples in both splits.
        seed: Of the bootstrap.
        resamples: Bootstrap resamples.
        batch_size: For splits given as arrays or datasets.
        title: What the report calls it.
        progress: Called before each piece of work.

    Returns:
        Rows, recommendation and ``best``, which has ``save(path)``.

    Raises:
        MissingInput: Fewer than two members.
        DataError: Splits that are empty, overlap or do not fit the task.
    """
    checked = check_splits(
        [
            as_examples(validation, "validation", batch_size=batch_size),
            as_examples(test, "test", batch_size=batch_size),
        ],
        task=task,
        classes=None,
        on_overlap=on_overlap,
    )
    allowed = "Overlap between the splits was allowed: test results may be too good."
    setting = Setting(
        members=tuple(_members(members, architecture)),
        validation=checked[0],
        test=checked[1],
        task=task,
        metric=metric(
            measure or default_metric(task), higher_is_better=higher_is_better, task=task
        ),
        batch_norm=checked[0] if train is None else as_examples(train, "train"),
        base=open_checkpoint(base) if base is not None else None,
        ordered=ordered,
        seed=seed,
        resamples=resamples,
        title=title,
        notes=(allowed,) if on_overlap == "allow" else (),
    )
    folder = Path(output) if output is not None else None
    found = run_comparison(
        setting, wanted=candidates, folder=folder, overwrite=overwrite, progress=progress
    )
    if folder is not None:
        found.report(folder / "report.html", overwrite=True)
    return found


def save_checkpoint(
    model: Any,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a module, state dict, list of arrays or checkpoint as ``.safetensors``, whole or not.

    Args:
        model: Anything that ``open_checkpoint`` opens.
        path: The file to write; its folder must exist.
        metadata: Text to keep in the file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: The file exists and ``overwrite`` is not set, or it is the input.
    """
    target = _target(path)
    checkpoint = open_checkpoint(model)
    specs = checkpoint.specs()
    write_safetensors(
        target,
        specs,
        ((name, checkpoint.read(name)) for name in specs),
        metadata=metadata or {},
        overwrite=overwrite,
        inputs=_files([model]),
    )
    return target


def methods() -> list[dict[str, str]]:
    """Every registered merge method, ensemble rule and soup: sort, name, summary, needs, paper."""
    return [
        {
            "sort": registry.sort,
            "name": entry.name,
            "summary": entry.summary,
            "parameters": ", ".join(str(parameter) for parameter in entry.parameters.values()),
            "needs": ", ".join(sorted(entry.contract.get("needs", ()))),
            "paper": str(entry.contract.get("paper", "")),
        }
        for registry in (merge_methods, ensemble_rules, soups)
        for entry in registry.entries()
    ]


def _members(models: Models, architecture: Callable[[], nn.Module] | None) -> list[Member]:
    named = models if isinstance(models, Mapping) else None
    if named is None and all(isinstance(model, nn.Module) for model in models):
        named = _named(models)
    if named is not None and all(isinstance(model, nn.Module) for model in named.values()):
        return [Member(name, module.eval()) for name, module in named.items()]
    if architecture is None:
        raise MissingInput(
            "Checkpoints cannot be run as they are: pass architecture=, a callable that builds "
            "the module they belong to, or give modules."
        )
    sources = list(models.values() if isinstance(models, Mapping) else models)
    found = []
    for checkpoint, source in zip(open_members(models), sources, strict=True):
        module = architecture()
        load_state(module, state_dict(checkpoint))
        found.append(Member(checkpoint.id, module.eval(), source_of(source)))
    return found


def _named(members: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(members, Mapping):
        return dict(members)
    return {f"member {number}": member for number, member in enumerate(members, start=1)}


def _in_order(
    weights: Sequence[float] | Mapping[str, float] | None, checkpoints: Sequence[Checkpoint]
) -> Sequence[float] | None:
    if not isinstance(weights, Mapping):
        return weights
    names = [checkpoint.id for checkpoint in checkpoints]
    by_name = {str(name): weight for name, weight in weights.items()}
    if set(by_name) != set(names):
        raise InvalidWeights(
            f"Weights are for {', '.join(by_name)}; the models are {', '.join(names)}."
        )
    return [by_name[name] for name in names]


def _weights_by(name: str, models: Models, validation: Any, task: Task) -> list[float]:
    modules = list(_named(models).values())
    if validation is None or not all(isinstance(module, nn.Module) for module in modules):
        raise MissingInput(
            f"Weights by {name} need modules to run and data to score them on: pass modules and "
            "validation=. For files, use compare."
        )
    chosen, examples = metric(name, task=task), as_examples(validation, "validation")
    outputs = [predict(module, examples) for module in modules]
    stack = member_stack(outputs, [detect_kind(output, task) for output in outputs], task)
    return list(weights_from_scores([chosen.value(out, examples.targets) for out in stack], chosen))


def _is_path(model: Any) -> bool:
    return isinstance(model, str | Path)


def _sources(models: Models) -> list[Any]:
    return list(models.values() if isinstance(models, Mapping) else models)


def _base(base: Any, trust_pickle: bool) -> Checkpoint | None:
    if base is None:
        return None
    name = None if _is_path(base) else "base"
    return open_checkpoint(base, name=name, trust_pickle=trust_pickle)


def _target(output: str | Path) -> Path:
    """The file to write; another suffix would promise another format."""
    target = Path(output).expanduser()
    if target.suffix != ".safetensors":
        raise InvalidParameter(
            f"{output} would be a safetensors file: give it a name that ends in .safetensors."
        )
    return target


def _files(sources: Sequence[Any]) -> list[Path]:
    """The files and folders that models were read from, to be kept from being written over."""
    paths = [str(source) for source in sources if _is_path(source)]
    entries = [path.rpartition("#")[0] for path in paths if "#" in path]
    return [Path(path).expanduser() for path in (*paths, *entries)]


def _provenance(
    plan: Plan,
    models: Models,
    checkpoints: Sequence[Checkpoint],
    base: Any,
    origin: Checkpoint | None,
) -> dict[str, str]:
    digests = {
        checkpoint.id: _digest(checkpoint, source)
        for checkpoint, source in zip(checkpoints, _sources(models), strict=True)
    }
    if origin is not None and plan.base is not None:
        digests["base"] = _digest(origin, base)
    weights: dict[str, float] = {}
    for name, weight in zip(plan.members, plan.weights, strict=True):
        weights[name] = weights.get(name, 0.0) + weight  # one model in memory may come twice
    ordered = plan.build_method().ordered
    return provenance(
        inputs=digests,
        method=plan.method,
        parameters=plan.parameters,
        weights=weights,
        notes=[f"members, oldest first: {', '.join(plan.members)}"] if ordered else [],
    )


def _digest(checkpoint: Checkpoint, source: Any) -> str:
    if _is_path(source) and Path(source).expanduser().is_file():
        return file_digest(source)
    return content_digest(checkpoint)


def _warn_of_averaged_statistics(plan: Plan) -> None:
    mixed = sum(weight > 0 for weight in plan.weights) > 1 or plan.base is not None
    if mixed and any(step.name.rpartition(".")[2] == "running_var" for step in plan.steps):
        warnings.warn(
            "BatchNorm statistics were averaged, not re-estimated, and probably fit no member's "
            "weights. Pass batch_norm=DATA with modules, or call "
            "alloykit.update_batch_norm(model, batches).",
            stacklevel=4,
        )
