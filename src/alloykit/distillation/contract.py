"""How a distillation loss is written: a factory with its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from alloykit.data.tasks import require_served
from alloykit.distillation.outputs import Form, as_logits
from alloykit.errors import DataError, InvalidParameter, MissingInput, listing
from alloykit.numerics import is_number
from alloykit.registry import distillation_losses
from alloykit.types import Task

Source = Literal["outputs", "features"]
Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]

CLASSES: frozenset[Task] = frozenset({"classification", "tokens"})
VALUES: frozenset[Task] = frozenset({"regression"})
EXAMPLES: frozenset[Task] = frozenset({"classification", "regression"})


@dataclass(frozen=True)
class SoftLoss:
    """How far a student is from its teacher.

    Attributes:
        name: Its registered name.
        parameters: What it was built with.
        compare: ``(student, teacher, labels) -> [row]``, one number per row, or ``[]`` where rows
            are compared with each other. Student and teacher are logits ``[row, class]``
            (log-probabilities are logits), values or features ``[row, *width]``, in float32 or
            float64.
        tasks: The tasks that it serves.
        source: What it compares.
        labels: Whether it needs labels.
        coarse: Whether it may compare the few classes that a top-k store keeps.
        any_width: Whether it compares features of different widths.
    """

    name: str
    parameters: Mapping[str, Any]
    compare: Compare
    tasks: frozenset[str]
    source: Source
    labels: bool
    coarse: bool
    any_width: bool = False

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        *,
        form: Form = "logits",
    ) -> Tensor:
        """The mean over all rows, in float32 (float64 where the student's are).

        Args:
            student: Logits ``[example, class]``, or values or features ``[example, *width]``.
            teacher: The same of the teacher, without gradients.
            labels: ``[example]``, for losses that need them.
            form: Whether the teacher's are logits (or log-probabilities) or probabilities.

        Raises:
            MissingInput: It needs labels.
            DataError: Student and teacher differ in shape.
        """
        if self.labels and labels is None:
            raise MissingInput(f"The loss {self.name} needs labels. Pass labels=, or use kl.")
        if student.shape != teacher.shape and not self.any_width:
            raise DataError(
                f"The student gives {list(student.shape)} and the teacher {list(teacher.shape)}. "
                f"{self.name} compares them number by number."
            )
        if "classification" in self.tasks and self.source == "outputs":
            student, teacher = as_logits(student), as_logits(teacher.detach(), form)
        wide = student.double() if student.element_size() == 8 else student.float()
        return self.compare(wide, teacher.detach().to(wide), labels).mean()

    def __repr__(self) -> str:
        given = (f"{_short(key)}={value:g}" for key, value in self.parameters.items())
        return f"{self.name}({', '.join(given)})" if self.parameters else self.name


def _require_numbers(loss: str, given: Mapping[str, Any]) -> None:
    wrong = [f"{n!r} is {value!r}" for n, value in given.items() if not is_number(value)]
    if wrong:
        raise InvalidParameter(f"The parameters of {loss} are numbers:\n{listing(wrong)}")


def _short(parameter: str) -> str:
    return "T" if parameter == "temperature" else parameter


def distillation_loss(
    *,
    tasks: frozenset[Task],
    source: Source = "outputs",
    labels: bool = False,
    coarse: bool = False,
    any_width: bool = False,
    formula: str = "",
    paper: str = "",
) -> Callable[[Callable[..., Compare]], Callable[..., SoftLoss]]:
    """Register a factory of comparisons under its own name.

    The decorated factory takes the loss's parameters, all of them numbers, and returns a
    comparison of rows; calling the registered name gives a ``SoftLoss``.

    Args:
        tasks: Every task that the loss serves.
        source: Whether it compares outputs or features of a named layer.
        labels: Whether it needs labels.
        coarse: Whether it still means the same on k classes and one class for all others.
        any_width: Whether it compares features of different widths.
        formula: The loss in one line, for the generated documentation.
        paper: Where it comes from.
    """

    def register(factory: Callable[..., Compare]) -> Callable[..., SoftLoss]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> SoftLoss:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            _require_numbers(factory.__name__, bound.arguments)
            return SoftLoss(
                name=factory.__name__,
                parameters=dict(bound.arguments),
                compare=factory(*args, **kwargs),
                tasks=frozenset(tasks),
                source=source,
                labels=labels,
                coarse=coarse,
                any_width=any_width,
            )

        distillation_losses.add(
            build,
            tasks=tasks,
            source=source,
            labels=labels,
            coarse=coarse,
            any_width=any_width,
            formula=formula,
            paper=paper,
        )
        return build

    return register


def require_task(loss: SoftLoss, task: Task) -> None:
    """Refuse a loss that does not serve ``task``, naming the ones that do."""
    require_served(f"loss {loss.name}", loss.tasks, task, distillation_losses)


def check_temperature(temperature: float, loss: str) -> None:
    """Refuse a temperature that is not above zero."""
    if not is_number(temperature) or not 0 < temperature < float("inf"):
        raise InvalidParameter(
            f"The 'temperature' of {loss} must be above 0. Got {temperature!r}. (1 leaves the "
            "teacher's probabilities as they are; 2 to 4 soften them.)"
        )
