"""The verbs for weights: merge, average, interpolate, save_checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.api.inputs import (
    Models,
    files_of,
    in_order,
    is_path,
    named,
    opened_base,
    sources_of,
    target_file,
)
from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.checkpoints.writing import write_safetensors
from alloykit.data.examples import as_examples
from alloykit.ensembling.stack import member_stack
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.evaluation.batch_norm import update_batch_norm
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.predicting import detect_kind, predict
from alloykit.evaluation.weighting import weights_from_scores
from alloykit.execution.members import open_members, several
from alloykit.execution.plan import Plan, plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import Progress as StepProgress
from alloykit.execution.run import merge_in_memory, merge_to_file
from alloykit.types import Checkpoint, Task


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
    target = None if output is None else target_file(output)
    checkpoints = open_members(models, trust_pickle=trust_pickle)
    origin = opened_base(base, trust_pickle)
    plan = plan_merge(
        checkpoints,
        method,
        parameters,
        weights=in_order(weights, checkpoints),
        strict_weights=not normalize,
        base=origin,
        dtype=dtype,
        seed=seed,
    )
    first = sources_of(models)[0]
    if batch_norm is None:
        _warn_of_averaged_statistics(plan)
    elif not isinstance(first, nn.Module):
        raise MissingInput(
            "Re-estimating BatchNorm runs the model: give modules, or merge without batch_norm "
            "and call alloykit.update_batch_norm on the module that you load the result into."
        )
    files = files_of([*sources_of(models), base])
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
    target = target_file(path)
    checkpoint = open_checkpoint(model)
    specs = checkpoint.specs()
    write_safetensors(
        target,
        specs,
        ((name, checkpoint.read(name)) for name in specs),
        metadata=metadata or {},
        overwrite=overwrite,
        inputs=files_of([model]),
    )
    return target


def _weights_by(name: str, models: Models, validation: Any, task: Task) -> list[float]:
    modules = list(named(models).values())
    if validation is None or not all(isinstance(module, nn.Module) for module in modules):
        raise MissingInput(
            f"Weights by {name} need modules to run and data to score them on: pass modules and "
            "validation=. For files, use compare."
        )
    chosen, examples = metric(name, task=task), as_examples(validation, "validation")
    outputs = [predict(module, examples) for module in modules]
    stack = member_stack(outputs, [detect_kind(output, task) for output in outputs], task)
    return list(weights_from_scores([chosen.value(out, examples.targets) for out in stack], chosen))


def _provenance(
    plan: Plan,
    models: Models,
    checkpoints: Sequence[Checkpoint],
    base: Any,
    origin: Checkpoint | None,
) -> dict[str, str]:
    digests = {
        checkpoint.id: _digest(checkpoint, source)
        for checkpoint, source in zip(checkpoints, sources_of(models), strict=True)
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
    if is_path(source) and Path(source).expanduser().is_file():
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
