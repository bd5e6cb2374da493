"""What ``merge`` is asked for -> opened checkpoints, a plan, and a record of where it came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alloykit.api.inputs import Models, files_of, in_order, is_path, opened_base, sources_of
from alloykit.checkpoints.digests import (
    WEIGHT_FILES,
    content_digest,
    file_digest,
    fingerprint,
)
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.checkpoints.wording import shown
from alloykit.errors import (
    AlloyError,
    CheckpointError,
    InvalidParameter,
    MissingInput,
    did_you_mean,
)
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.inputs import Inputs
from alloykit.execution.limits import Limits
from alloykit.execution.members import open_members, several
from alloykit.execution.plan import Plan, plan_merge
from alloykit.execution.ray import on_cluster
from alloykit.execution.ray_task import Sources
from alloykit.execution.running import run_blocks
from alloykit.execution.schedules import to_json, unmatched
from alloykit.registry import merge_methods
from alloykit.types import Checkpoint

DIGESTS: Mapping[str, Callable[[str | Path], str]] = {
    "fingerprint": fingerprint,
    "sha256": file_digest,
}
EXECUTORS = ("local", "ray")
COMPAT = ("mergekit",)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Say what the system refused, of which file."""
    try:
        yield
    except AlloyError:
        raise
    except OSError as error:
        name = shown(str(error.filename or "An input"))
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class Job:
    """A merge that is planned and not yet run.

    Attributes:
        plan: What will be done to every tensor.
        sources: The models as given.
        checkpoints: The same, opened.
        base: The base as given.
        origin: The same, opened.
        stats: Kind of statistics -> one opened checkpoint per model.
        stats_sources: The same as given.
        asked: The settings as given, for the record.
        trust_pickle: Whether pickles with unknown classes are opened.
    """

    plan: Plan
    sources: list[Any]
    checkpoints: list[Checkpoint]
    base: Any
    origin: Checkpoint | None
    stats: Mapping[str, Sequence[Checkpoint]] = field(default_factory=dict)
    stats_sources: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False

    def arithmetic(self, device: str = "cpu") -> Arithmetic:
        """What computes it."""
        inputs = Inputs.of(self.plan, self.checkpoints, self.origin, self.stats)
        return Arithmetic(self.plan, inputs, device)

    @property
    def files(self) -> list[Path]:
        """The files that must not be written over."""
        every = [
            *self.sources,
            self.base,
            *(s for each in self.stats_sources.values() for s in each),
        ]
        return files_of(every)

    def identity(self) -> list[str]:
        """Sizes and times of change of the input files: what a resumed run finds unchanged."""
        files = [file for path in self.files for file in _weight_files(path)]
        with clear_errors():
            found = [(file.absolute(), file.stat()) for file in files]
        return sorted(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in found)

    @clear_errors()
    def provenance(self, digests: str = "fingerprint") -> dict[str, str]:
        """The record of this merge, for the header of its result."""
        if digests not in DIGESTS:
            raise InvalidParameter(
                f"There are no digests {digests!r}.{did_you_mean(digests, list(DIGESTS))} "
                f"There are: {', '.join(DIGESTS)}."
            )
        plan = self.plan
        found = {
            checkpoint.id: _digest(checkpoint, source, digests)
            for checkpoint, source in zip(self.checkpoints, self.sources, strict=True)
        }
        if self.origin is not None and plan.base is not None:
            found["base"] = _digest(self.origin, self.base, digests)
        weights: dict[str, float] = {}
        for name, weight in zip(plan.members, plan.weights, strict=True):
            weights[name] = weights.get(name, 0.0) + weight  # one model in memory may come twice
        ordered = plan.build_method().ordered
        return provenance(
            inputs=found,
            method=plan.method,
            parameters=plan.parameters,
            weights=weights,
            notes=[f"members, oldest first: {', '.join(plan.members)}"] if ordered else [],
            recipe=self._recipe(),
        )

    def _recipe(self) -> dict[str, Any]:
        """Arguments of ``merge`` that make the same again, as JSON can say them.

        Models, and all that there is one of per model, are in the order of the plan: the record
        is the same in whatever order they were given, where that carries no meaning.
        """
        places = {name: index for index, name in enumerate(self.plan.members)}
        names = [checkpoint.id for checkpoint in self.checkpoints]
        order = sorted(range(len(names)), key=lambda i: places[names[i]])
        per_member = self.plan.build_method().per_member
        parameters, weights = self.asked["parameters"], self.asked["weights"]
        return {
            **self.asked,
            "parameters": {
                key: _permuted(value, order) if key in per_member else value
                for key, value in parameters.items()
            },
            "weights": None if weights is None else _permuted(weights, order),
            # A list: the order of the models may carry meaning, and JSON keys are sorted.
            "models": [{"name": names[i], "path": _place(self.sources[i])} for i in order],
            "base": None if self.plan.base is None else _place(self.base),
            "stats": {
                kind: [_place(sources[i]) for i in order]
                for kind, sources in self.stats_sources.items()
                if kind in self.plan.stats
            },
        }


@clear_errors()
def planned(
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
    trust_pickle: bool = False,
) -> Job:
    """Open the models and decide what a merge does to every tensor; the arguments are ``merge``'s.

    Raises:
        AlloyError: Whatever ``merge`` would raise before it computes anything.
    """
    models = several(models)
    given = _with_compat(method, {k: _plain(v) for k, v in (parameters or {}).items()}, compat)
    checkpoints = open_members(models, trust_pickle=trust_pickle)
    origin = opened_base(base, trust_pickle)
    stats_sources = {
        kind: _in_models_order(kind, each, checkpoints) for kind, each in (stats or {}).items()
    }
    opened = {kind: [open_checkpoint(s) for s in each] for kind, each in stats_sources.items()}
    chosen = in_order(weights, checkpoints)
    chosen = None if chosen is None else [_plain(weight) for weight in chosen]
    output = torch_dtype(dtype)
    plan = plan_merge(
        checkpoints,
        method,
        given,
        weights=chosen,
        strict_weights=strict,
        base=origin,
        stats=opened,
        dtype=output,
        seed=seed,
    )
    _warn_of_unmatched([*given.values(), chosen], [step.name for step in plan.steps])
    asked = {
        "method": method,
        "parameters": {key: to_json(value) for key, value in given.items()},
        "weights": None if chosen is None else to_json(list(chosen)),
        "strict": strict,
        "dtype": None if output is None else str(output).removeprefix("torch."),
        "seed": seed,
    }
    return Job(
        plan, sources_of(models), checkpoints, base, origin, opened, stats_sources, asked,
        trust_pickle,
    )  # fmt: skip


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by name, as recipes and the command line give it."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise InvalidParameter(
            f"There is no dtype {dtype!r}. Common: float32, bfloat16, float16, float64."
        )
    return found


def checked_device(device: str) -> str:
    """The device, if this machine has it."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InvalidParameter(f"There is no device {device!r}. Use cpu or cuda.") from error
    if kind not in ("cpu", "cuda"):
        raise InvalidParameter(f"Merging runs on cpu or cuda. Got {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidParameter(f"{device!r} was asked for, and torch finds no CUDA device here.")
    return device


def executor_named(name: str, job: Job, limits: Limits) -> Callable[..., None]:
    """What computes the blocks: threads of this process, or workers of a Ray cluster."""
    if name not in EXECUTORS:
        raise InvalidParameter(
            f"There is no executor {name!r}.{did_you_mean(name, EXECUTORS)} "
            f"There are: {', '.join(EXECUTORS)}."
        )
    if name == "local":
        return run_blocks
    return on_cluster(_on_disk(job))


def _on_disk(job: Job) -> Sources:
    """Where the inputs of a plan lie, for workers that open them anew."""
    base = job.base if job.plan.base is not None else None
    stats = {kind: list(job.stats_sources[kind]) for kind in job.plan.stats}
    every = [*job.sources, *([] if base is None else [base])]
    if not all(map(is_path, [*every, *(source for each in stats.values() for source in each)])):
        raise MissingInput("A Ray cluster reads the models from files: give paths.")
    names = [checkpoint.id for checkpoint in job.checkpoints]
    return Sources(
        members={name: _path(source) for name, source in zip(names, job.sources, strict=True)},
        base=None if base is None else _path(base),
        stats={kind: [_path(source) for source in each] for kind, each in stats.items()},
        trust_pickle=job.trust_pickle,
    )


def _weight_files(path: Path) -> list[Path]:
    """The files that a model's tensors lie in."""
    with clear_errors():
        if path.is_dir():
            return sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
        return [path] if path.is_file() else []


def _warn_of_unmatched(values: Sequence[Any], names: Sequence[str]) -> None:
    globs = [glob for value in values for glob in unmatched(value, names)]
    if globs:
        warnings.warn(
            f"No tensor's name matches {', '.join(map(repr, globs))}: probably misspelt. "
            "The dry run (--dry-run) lists the names.",
            stacklevel=4,
        )


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's."""
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.dim() == 0):
        return value.item()
    return value


def _with_compat(method: str, parameters: dict[str, Any], compat: str | None) -> dict[str, Any]:
    if compat is None:
        return parameters
    if compat not in COMPAT:
        raise InvalidParameter(
            f"'compat' must be 'mergekit'. Got {compat!r}.{did_you_mean(compat, COMPAT)}"
        )
    # Methods without that parameter agree with mergekit anyway.
    takes = "compat" in merge_methods.entry(method).parameters
    return {**parameters, "compat": compat} if takes else parameters


def _in_models_order(kind: str, sources: Any, checkpoints: Sequence[Checkpoint]) -> list[Any]:
    if not isinstance(sources, Mapping):
        return list(sources)
    names = [checkpoint.id for checkpoint in checkpoints]
    if set(sources) != set(names):
        raise MissingInput(
            f"{kind} statistics are for {', '.join(map(str, sources))}; "
            f"the models are {', '.join(names)}."
        )
    return [sources[name] for name in names]


def _permuted(value: Any, order: Sequence[int]) -> Any:
    """Lists with one value per model in another order, also where they differ by tensor."""
    if isinstance(value, list):
        return [value[i] for i in order]
    if isinstance(value, dict) and "by_name" in value:
        return {"by_name": [[glob, _permuted(each, order)] for glob, each in value["by_name"]]}
    return value


def _digest(checkpoint: Checkpoint, source: Any, digests: str) -> str:
    if is_path(source) and Path(source).expanduser().exists():
        return DIGESTS[digests](source)
    return content_digest(checkpoint)


def _place(source: Any) -> str | None:
    """Where a source lies, or None for one in memory."""
    return _path(source) if is_path(source) else None


def _path(source: str | Path) -> str:
    return str(Path(source).expanduser().absolute())
