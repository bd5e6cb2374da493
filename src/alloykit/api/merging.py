"""The verbs for weights: merge, average, interpolate, save_checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.api.inputs import Models, files_of, named, target_file, target_path
from alloykit.api.planning import checked_device, executor_named, planned
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import write_safetensors
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.execution.allocation import keep_freed_memory
from alloykit.execution.limits import Limits, parsed_bytes
from alloykit.execution.manifest import write_manifest
from alloykit.execution.members import several
from alloykit.execution.plan import Plan
from alloykit.execution.results import in_form_of
from alloykit.execution.run import Progress, merge_in_memory
from alloykit.execution.to_files import Destination, merge_to_files
from alloykit.types import Task


def merge(
    models: Models,
    method: str = "linear",
    *,
    base: Any = None,
    weights: Sequence[Any] | Mapping[str, Any] | None = None,
    strict: bool = False,
    parameters: Mapping[str, Any] | None = None,
    compat: str | None = None,
    stats: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    batch_norm: Any = None,
    output: str | Path | None = None,
    max_shard_size: int | str | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    executor: str = "local",
    resume: bool = False,
    manifest: bool = False,
    digests: str = "fingerprint",
    overwrite: bool = False,
    trust_pickle: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Merge models into one by any registered merge method.

    Args:
        models: A sequence of models, or a mapping from name to model; each a module, a state
            dict, a list of arrays, or the path of a checkpoint.
        method: Registered name; ``alloykit.methods()`` lists them.
        base: The model that they were fine-tuned from, for methods that need one; others leave
            it alone.
        weights: One number per model, in their order or by name. Methods that average divide
            them by their sum; those that add task vectors use them as they are. None is uniform.
        strict: Refuse weights of an average that do not sum to one, instead of dividing.
        parameters: The method's own parameters. A value may differ by tensor: a mapping from glob
            to value, or a ``Gradient`` over the layers.
        compat: "mergekit" for the formulas of mergekit where they differ from the papers'.
        stats: Kind of statistics ("fisher", "gram") -> one file per model, in their order;
            ``alloykit.stats`` makes them.
        dtype: Output dtype of averaged tensors; by default the models' own.
        seed: For methods that draw random numbers.
        batch_norm: Data to re-estimate BatchNorm statistics on, for modules: anything that
            ``compare`` takes as a split. Without it a warning says that they were averaged.
        output: A ``.safetensors`` file to write, with provenance, instead of returning tensors;
            with ``max_shard_size`` a folder.
        max_shard_size: Bytes of a shard, such as "5GB".
        memory: Bytes that the blocks in flight may take, such as "2GB". The result is the same.
        threads: Number of threads; chosen by the method by default. The result is the same.
        device: Where to compute: "cpu", or a CUDA device.
        executor: "local", or "ray" for a Ray cluster that shares the files; writes files only.
        resume: Continue what a killed run with the same arguments left behind; and keep what an
            interrupted one leaves.
        manifest: Write OUTPUT.manifest.json as well: norms, cosines and conflicts of the task
            vectors, tensor by tensor.
        digests: What to record of the input files: "fingerprint" (of 1 MiB of each, at no cost)
            or "sha256" (of all bytes).
        overwrite: Whether an existing output may be replaced.
        trust_pickle: Open pickled checkpoints that refer to unknown classes (nothing is run).
        progress: Called with what comes next, how many bytes are done, and how many in all.

    Returns:
        What the models are: a module, a state dict, a list of arrays; a state dict for files. The
        output's path where one is given.

    Raises:
        MissingInput: No models or one, or no base where one is needed.
        InvalidWeights: Weights that cannot be used.
        InvalidParameter: Other arguments that cannot be used.
        CheckpointError: Files that cannot be read, models that do not match, NaN inside them.
        OutputExists: The output exists, or is one of the inputs.

    Example:
        >>> merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"]
        tensor([0.5000, 0.5000])
    """
    shard_size = parsed_bytes(max_shard_size, "max_shard_size")
    target = None if output is None else target_path(output, shard_size)
    job = planned(
        models, method, base=base, weights=weights, strict=strict, parameters=parameters,
        compat=compat, stats=stats, dtype=dtype, seed=seed, trust_pickle=trust_pickle,
    )  # fmt: skip
    limits = Limits(parsed_bytes(memory, "memory"), threads, device=checked_device(device))
    first = job.sources[0]
    if batch_norm is None:
        _warn_of_averaged_statistics(job.plan)
    elif not isinstance(first, nn.Module):
        raise MissingInput(
            "Re-estimating BatchNorm runs the model: give modules, or merge without batch_norm "
            "and call alloykit.update_batch_norm on the module that you load the result into."
        )
    execute = executor_named(executor, job, limits)
    if target is None or batch_norm is not None:
        if target is None and (resume or manifest or shard_size or executor != "local"):
            raise MissingInput(
                "resume, manifest, max_shard_size and executor are about files: give an output."
            )
        tensors = merge_in_memory(
            job.plan, job.checkpoints, job.origin, stats=job.stats, limits=limits,
            progress=progress,
        )  # fmt: skip
        merged = in_form_of(first, tensors)
        if batch_norm is not None:
            _reestimate(merged, batch_norm)
        if target is None:
            return merged
        held = open_checkpoint(merged)
        write_safetensors(
            target, job.plan.specs(), ((name, held.read(name)) for name in tensors),
            metadata=job.provenance(digests), overwrite=overwrite, inputs=job.files,
        )  # fmt: skip
        return target
    keep_freed_memory()
    arithmetic = job.arithmetic(limits.device)
    destination = Destination(
        target, job.provenance(digests), shard_size, overwrite, resume, job.files, job.identity()
    )
    merge_to_files(arithmetic, destination, limits=limits, execute=execute, progress=progress)
    if manifest:
        write_manifest(arithmetic, target, overwrite=overwrite)
    return target


def average(
    models: Models,
    weights: Sequence[float] | Mapping[str, float] | str | None = None,
    *,
    recency: float | None = None,
    strict: bool = False,
    last: int | None = None,
    best: int | None = None,
    scores: Sequence[float] | None = None,
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
        strict: Refuse weights that do not sum to one, instead of dividing by the sum.
        last: Average the last so many models only (checkpoints of one run, oldest first).
        best: Average only the so many models of the highest ``scores``.
        scores: One number per model, higher is better: accuracies, or negated losses.
        validation: Data for weights by a metric: anything that ``compare`` takes as a split.
        task: How the outputs are read for weights by a metric.
        **options: All others as in ``merge``.

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
    models, weights = _kept(models, weights, last, best, scores)
    if isinstance(weights, str):
        weights = _weights_by(weights, models, validation, task)
    if recency is None:
        return merge(models, "linear", weights=weights, strict=strict, **options)
    return merge(
        models, "exponential", weights=weights, strict=strict,
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
    # What runs models is imported where models are run: files are merged without it.
    from alloykit.data.examples import as_examples
    from alloykit.ensembling.stack import member_stack
    from alloykit.evaluation.metrics import metric
    from alloykit.evaluation.predicting import detect_kind, predict
    from alloykit.evaluation.weighting import weights_from_scores

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


def _reestimate(module: nn.Module, data: Any) -> None:
    from alloykit.data.examples import as_examples
    from alloykit.evaluation.batch_norm import update_batch_norm

    update_batch_norm(module, as_examples(data, "train").batches())


def _kept(
    models: Any,
    weights: Any,
    last: int | None,
    best: int | None,
    scores: Sequence[float] | None,
) -> tuple[Any, Any]:
    """The last or the best of the models, in their order, and their weights."""
    if last is None and best is None:
        if scores is not None:
            raise MissingInput("'scores' choose the best models: say how many with best=.")
        return models, weights
    if last is not None and best is not None:
        raise InvalidParameter("Give 'last' or 'best', not both.")
    count = len(models)
    wanted = last if last is not None else best
    assert wanted is not None
    if not 1 <= wanted <= count:
        which = "last" if best is None else "best"
        raise InvalidParameter(f"{which!r} must be between 1 and {count} models. Got {wanted}.")
    kept = list(range(count - wanted, count))
    if best is not None:
        if scores is None or len(scores) != count or any(math.isnan(s) for s in scores):
            raise MissingInput(f"'best' needs scores=: one number for each of the {count} models.")
        kept = sorted(sorted(range(count), key=lambda i: -scores[i])[:wanted])
    if isinstance(models, Mapping):
        names = list(models)
        models = {names[i]: models[names[i]] for i in kept}
    else:
        models = [models[i] for i in kept]
    if isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) == count:
        weights = [weights[i] for i in kept]
    return models, weights


def _warn_of_averaged_statistics(plan: Plan) -> None:
    mixed = sum(weight > 0 for weight in plan.weights) > 1 or plan.base is not None
    if mixed and any(step.name.rpartition(".")[2] == "running_var" for step in plan.steps):
        warnings.warn(
            "BatchNorm statistics were averaged, not re-estimated, and probably fit no member's "
            "weights. Pass batch_norm=DATA with modules, or call "
            "alloykit.update_batch_norm(model, batches).",
            stacklevel=4,
        )
