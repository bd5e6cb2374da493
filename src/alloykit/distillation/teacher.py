"""What a student learns from: one frozen model, or several pooled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.batches import Inputs, forward, length, parts, placed
from alloykit.data.examples import Examples
from alloykit.data.outputs import output_tensor
from alloykit.distillation.confidence import pooled_by_confidence
from alloykit.ensembling.pooling import pool
from alloykit.ensembling.stack import fitting_rows, member_stack
from alloykit.ensembling.vote import vote
from alloykit.ensembling.weighted import scored_weights
from alloykit.errors import DataError, InvalidParameter, InvalidWeights, MissingInput
from alloykit.evaluation.freezing import frozen_view, require_modules
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.predicting import LOWEST, detect_kind, evaluating, predict, running
from alloykit.numerics import normalised
from alloykit.types import Kind, Task

Members = nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module]
Weights = Sequence[float] | Mapping[str, float] | str | None
"""By hand; a metric's name; "confidence"; "vote"; None for equal weights."""


class Source(Protocol):
    """Something that says, for a batch of inputs, what a student is to learn."""

    task: Task

    def __call__(self, inputs: Inputs, targets: Tensor | None = None, /) -> Tensor:
        """What to learn: [example, *output], float32."""

    def identity(self) -> dict[str, Any]:
        """What it is, as JSON values: equal for equal answers."""


class Teacher:
    """One or several frozen models that answer as one, without gradients.

    Called with a batch, it gives log-probabilities ``[example, *, class]``, or values for
    regression. Several teachers are pooled by the mean of their probabilities. It is no module:
    held by a LightningModule or another module it stays out of ``parameters()``, ``train()`` and
    every checkpoint. Your models share their tensors with it, are never changed, and keep their
    own flags.

    Args:
        members: A model of any kind (an ensemble, a fusion, a soup's result), or several by name or
            in order, with the same classes in the same order.
        task: What they were trained for.
        weights: How several count. Numbers by hand; the name of a metric (each counts by its
            score on ``validation``); "confidence" (each counts on each example by how sure it is,
            or, with labels, by how right); "vote" (hard pseudo-labels: the class with most votes,
            ties by the mean probability). By default all count the same.
        validation: Examples for weights by a metric.

    Raises:
        MissingInput: No teachers, or no validation data for a metric.
        InvalidParameter: Unknown weights, or weights that do not serve the task.
        InvalidWeights: Weights by hand that do not fit.

    Example:
        >>> teacher = Teacher([nn.Identity(), nn.Identity()])
        >>> teacher(torch.tensor([[0.0, 0.0]])).exp()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        members: Members,
        *,
        task: Task = "classification",
        weights: Weights = None,
        validation: Examples | None = None,
    ) -> None:
        named = named_teachers(members)
        if not named:
            raise MissingInput("There is no teacher. Give one module, or several.")
        self.task: Task = task
        self.names = tuple(named)
        self._members = [frozen_view(module) for module in named.values()]
        self._kinds: list[Kind] | None = None
        self.weighting = weights if isinstance(weights, str) else ""
        self.weights: tuple[float, ...] | None = None
        if isinstance(weights, str):
            self._check_weighting(weights)
            if weights not in ("confidence", "vote"):
                self.weights = self._by_metric(weights, validation)
        elif weights is not None or len(named) > 1:
            self.weights = normalised(_in_order(weights, self.names), len(named))

    @property
    def uses_labels(self) -> bool:
        """Whether what it says depends on the labels, where there are some."""
        return self.weighting == "confidence" and len(self._members) > 1

    def __call__(self, inputs: Inputs, targets: Tensor | None = None, /) -> Tensor:
        """What it says to a batch, on the device of the inputs.

        Args:
            inputs: As the members take them.
            targets: Used by weights of confidence alone.

        Shapes:
            -> [example, *, class] log-probabilities, or [example, *output] values; float32

        Raises:
            DataError: Outputs of different shapes, or NaN among them.
        """
        device = parts(inputs)[0].device
        outputs = [
            self._run(name, member, inputs).to(device)
            for name, member in zip(self.names, self._members, strict=True)
        ]
        if self._kinds is None:
            self._kinds = [detect_kind(output, self.task) for output in outputs]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            stack = member_stack(outputs, self._kinds, self.task, names=self.names)
            if bool(torch.isnan(stack).any()):
                bad = [n for n, rows in zip(self.names, stack, strict=True) if rows.isnan().any()]
                raise DataError(f"The outputs of the teacher {', '.join(bad)} hold NaN.")
            return self._pooled(stack.float(), targets)

    def to(self, device: torch.device | str) -> Teacher:
        """Move it, not your models; returns itself."""
        for member in self._members:
            member.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """Digests of its members, and how they are pooled, as JSON values."""
        members = {
            name: digest_of(member) for name, member in zip(self.names, self._members, strict=True)
        }
        weights = None if self.weights is None else list(self.weights)
        return {
            "members": members,
            "pooling": self.weighting if self.uses_labels or self.weighting == "vote" else "mean",
            "weights": weights,
            "task": self.task,
        }

    def _run(self, name: str, member: nn.Module, inputs: Inputs) -> Tensor:
        with evaluating(member), running(f"The teacher {name}", inputs):
            outputs = output_tensor(forward(member, placed(inputs, member))).detach()
        require_rows(outputs, length(inputs), name)
        return outputs

    def _pooled(self, stack: Tensor, targets: Tensor | None) -> Tensor:
        if self.weighting == "vote":
            return _one_hot(vote().combine(stack, {}))
        if self.uses_labels:
            return pooled_by_confidence(stack, targets)
        if len(stack) == 1:
            return stack[0]
        space = "values" if self.task == "regression" else "probabilities"
        return pool(stack, torch.tensor(self.weights, dtype=torch.float64), space)

    def _check_weighting(self, name: str) -> None:
        if name in ("confidence", "vote"):
            if self.task == "regression":
                raise InvalidParameter(
                    f"weights={name!r} is for classes. For regression give numbers, or a metric."
                )
            return
        metric(name, task=self.task)

    def _by_metric(self, name: str, validation: Examples | None) -> tuple[float, ...]:
        if validation is None:
            raise MissingInput(
                f"Weights by {name} take validation data: pass validation=, or give numbers."
            )
        outputs = [predict(member, validation) for member in self._members]
        kinds = [detect_kind(output, self.task) for output in outputs]
        stack = member_stack(outputs, kinds, self.task, names=self.names)
        rows, targets = fitting_rows(stack, validation.targets, classes=self.task != "regression")
        found: list[float] = scored_weights(rows, targets, name, 1.0).tolist()
        return tuple(found)


def class_counts(members: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, int]:
    """How many classes each member gives for a batch; a single output is two classes.

    Example:
        >>> class_counts({"a": nn.Linear(2, 3), "b": nn.Linear(2, 1)}, torch.zeros(4, 2))
        {'a': 3, 'b': 2}
    """
    found = {}
    for name, member in members.items():
        with evaluating(member), running(f"The teacher {name}", inputs):
            outputs = output_tensor(forward(member, placed(inputs, member)))
        require_rows(outputs, length(inputs), name)
        found[name] = classes_in(outputs)
    return found


def require_rows(outputs: Tensor, count: int, name: str) -> None:
    """Refuse a teacher that does not say something on each example."""
    if outputs.dim() == 0 or len(outputs) != count:
        raise DataError(
            f"The teacher {name} gives outputs {list(outputs.shape)} for {count} examples: their "
            f"first dimension must be {count}."
        )


def classes_in(outputs: Tensor) -> int:
    """Classes of outputs [example, class], [example, position, class], [example, 1], [example]."""
    single = outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1)
    return 2 if single else outputs.shape[-1]


def digest_of(module: nn.Module) -> str:
    """The digest of a module's tensors and of its structure, as far as its repr shows it."""
    tensors: dict[str, Tensor] = {}
    tensors.update(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    structure = re.sub(r" at 0x[0-9a-f]+", "", f"{type(module).__qualname__} {module!r}")
    found = hashlib.sha256(structure.encode()).hexdigest()
    return f"{content_digest(MemoryCheckpoint(tensors, 'teacher'))} {found}" if tensors else found


def _one_hot(logs: Tensor) -> Tensor:
    """All mass on the most probable class: [*, class] -> [*, class]."""
    best = logs.argmax(-1, keepdim=True)
    return torch.full_like(logs, LOWEST).scatter(-1, best, 0.0)


def named_teachers(members: Members) -> dict[str, nn.Module]:
    """The teachers by name; nameless ones are numbered."""
    if isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList | nn.ModuleDict):
        named = {"teacher": members}
        require_modules(named)
        return named
    if isinstance(members, Mapping | nn.ModuleDict):
        named = dict(members.items())
    elif isinstance(members, Sequence | nn.ModuleList) and not isinstance(members, str):
        named = {f"teacher {number}": member for number, member in enumerate(members, start=1)}
    else:
        named = {"teachers": members}
    require_modules(named, "module, nor a tensor of outputs")
    return named


def _in_order(
    weights: Sequence[float] | Mapping[str, float] | None, names: Sequence[str]
) -> Sequence[float] | None:
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise InvalidParameter(
                f"Weights are for {', '.join(weights)}; the teachers are {', '.join(names)}."
            )
        weights = [weights[name] for name in names]
    try:
        return [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise InvalidWeights(
            "'weights' must be one number per teacher, a metric's name, 'confidence' or 'vote'. "
            f"Got {weights!r}."
        ) from None
