"""What a student is trained to do: agree with the teacher, and with the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alloykit.data.outputs import logits_of
from alloykit.data.splits import IGNORED
from alloykit.distillation.outputs import Form, as_logits, tempered
from alloykit.distillation.terms import Losses, Term, soft_terms
from alloykit.distillation.tokens import CHUNK, chunked_sum, scored_rows
from alloykit.distillation.top_k import coarse
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.numerics import compute_dtype, is_number
from alloykit.types import Task


class DistillationLoss(nn.Module):
    """A loss for any training loop: (1 - alpha) x soft loss + alpha x hard loss.

    The soft loss compares the student with the teacher, the hard one with the labels. Alpha is
    the weight of the hard one (others use it for the soft one; the repr says which is which).

    Use it in a loop of your own, a LightningModule, or a transformers Trainer; ``distill`` uses
    it too. Everything is computed in float32 (float64 where the student is), whatever comes in.

    Args:
        loss: A registered loss, one that is built, or several names with weights above 0:
            ``{"kl": 1, "hint": 10}``. By default "kl", and "values" for regression.
        temperature: T > 0, for losses that have one; 2 is a good start.
        alpha: Weight of the hard loss, in [0, 1]; 0 needs no labels, 1 is no distillation.
        task: "classification", "tokens" or "regression".
        label_smoothing: Share of the labels' mass that goes to all classes, in [0, 1).
        ignore_index: The label of rows without one. Tokens with it count in neither loss;
            examples with it count in the soft loss alone.
        teacher_form: "logits" (log-probabilities are logits too) or "probabilities".
        student_form: The same of the student.
        shift: Tokens: labels are the tokens themselves and outputs predict the next one, as in
            transformers' causal models. Labels are moved first and masked afterwards.
        chunk: Tokens: numbers of [row, vocabulary] that are in float32 at a time.
        **parameters: The soft loss's own.

    Shapes:
        student, teacher [example, class], [example, position, class] or [example, *output];
        labels [example], [example, position] or [example, *output] -> []

    Raises:
        InvalidParameter: Numbers outside their range, or a loss that does not serve the task.

    Example:
        >>> loss = DistillationLoss("kl", temperature=2.0, alpha=0.5)
        >>> loss
        DistillationLoss(soft 0.5 x kl(T=2) + hard 0.5 x cross-entropy)
        >>> loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.5685)
    """

    def __init__(
        self,
        loss: Losses = None,
        *,
        temperature: float = 2.0,
        alpha: float = 0.5,
        task: Task = "classification",
        label_smoothing: float = 0.0,
        ignore_index: int = IGNORED,
        teacher_form: Form = "logits",
        student_form: Form = "logits",
        shift: bool = False,
        chunk: int = CHUNK,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if not is_number(alpha) or not 0 <= alpha <= 1:
            raise InvalidParameter(
                f"'alpha' must be in [0, 1]. Got {alpha!r}. (It is the weight of the hard loss: "
                "0 learns from the teacher alone, 1 from the labels alone.)"
            )
        if not is_number(label_smoothing) or not 0 <= label_smoothing < 1:
            raise InvalidParameter(f"'label_smoothing' must be in [0, 1). Got {label_smoothing!r}.")
        self.terms = soft_terms(loss, task=task, temperature=temperature, parameters=parameters)
        self.on_outputs = tuple(t for t in self.terms if t.loss.source == "outputs")
        self.on_features = tuple(t for t in self.terms if t.loss.source == "features")
        if alpha == 0 and not self.on_outputs:
            raise InvalidParameter(
                f"{self.terms} with alpha=0 would leave the student's output untrained. Give labels"
                f" and alpha above 0, or add a loss of outputs: {{'kl': 1, "
                f"{self.terms[0].loss.name!r}: {self.terms[0].weight:g}}}."
            )
        self.alpha, self.task, self.label_smoothing = alpha, task, label_smoothing
        self.ignore_index, self.shift, self.chunk = ignore_index, shift, chunk
        self.teacher_form, self.student_form = teacher_form, student_form

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot be computed without labels."""
        return self.alpha > 0 or any(term.loss.labels for term in self.terms)

    def forward(
        self,
        student: Any,
        teacher: Any = None,
        labels: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        features: tuple[Tensor, Tensor] | None = None,
        num_items: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of one batch.

        Args:
            student: The student's outputs; or an object or mapping with ``logits``.
            teacher: The teacher's, with the same classes; not needed by losses of features alone.
            labels: Not needed where alpha is 0 and the soft loss needs none.
            classes: Of a teacher that kept its k best classes only: their numbers
                ``[*, k]``. The teacher's outputs are then k + 1 log-probabilities, as ``top_k``
                gives them.
            features: The student's and the teacher's, for losses of features.
            num_items: Divide sums by this instead of taking means: rows or tokens of all batches
                that make one step (``num_items_in_batch`` of a transformers Trainer).

        Raises:
            MissingInput: Labels, the teacher's outputs or features are needed.
            DataError: Shapes that do not fit.
        """
        given = logits_of(student)
        if self.alpha < 1 and self.on_outputs and teacher is None:
            raise MissingInput(f"The loss {self.on_outputs[0].loss.name} needs teacher=.")
        if self.needs_labels and labels is None:
            raise MissingInput(self.missing_labels())
        told = None if teacher is None else logits_of(teacher).detach()
        with torch.autocast(given.device.type, enabled=False):
            if self.task == "regression":
                total = self._of_values(given, told, labels, num_items)
            elif self.task == "tokens":
                total = self._of_tokens(given, told, labels, classes, num_items)
            else:
                total = self._of_examples(given, told, labels, classes, num_items)
            if self.alpha < 1 and self.on_features:
                total = total + (1 - self.alpha) * self._of_features(features, labels)
        return total

    def extra_repr(self) -> str:
        """Both terms with their weights."""
        hard = "squared error" if self.task == "regression" else "cross-entropy"
        if self.label_smoothing:
            hard += f"(smoothing={self.label_smoothing:g})"
        inner = " + ".join(map(repr, self.terms))
        soft = f"({inner})" if len(self.terms) > 1 else inner
        return f"soft {1 - self.alpha:g} x {soft} + hard {self.alpha:g} x {hard}"

    def missing_labels(self) -> str:
        """What to tell somebody who gave no labels where some are needed."""
        if self.alpha > 0:
            return (
                f"The hard loss (alpha={self.alpha:g}) needs labels. Pass them, or learn from the "
                "teacher alone with alpha=0."
            )
        names = ", ".join(term.loss.name for term in self.terms if term.loss.labels)
        return f"The loss {names} needs labels. Pass them, or use kl."

    def _soft(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, classes: Tensor | None
    ) -> Tensor:
        """The weighted soft losses of rows: [row, class] -> [row]."""
        if classes is not None:
            student = coarse(tempered(student), classes)
        losses = [t.weight * t.loss.compare(student, teacher, labels) for t in self.on_outputs]
        return torch.stack(losses).sum(0)

    def _hard(self, student: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            student,
            labels,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def _of_examples(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        classes: Tensor | None,
        num_items: Tensor | float | None,
    ) -> Tensor:
        student = as_logits(student, self.student_form)
        total = student.new_zeros(())
        known = None if labels is None else labels != self.ignore_index
        if self.alpha < 1 and teacher is not None and self.on_outputs:
            teacher = teacher if classes is not None else as_logits(teacher, self.teacher_form)
            _check_classes(student, teacher, classes, self.on_outputs)
            rows: tuple[Tensor | None, ...] = (student, teacher, labels, classes)
            if known is not None and any(term.loss.labels for term in self.terms):
                rows = tuple(None if part is None else part[known] for part in rows)
            soft = self._soft(*_wide(*rows))
            total = total + (1 - self.alpha) * _mean(soft, num_items)
        if self.alpha > 0 and labels is not None and known is not None:
            hard = self._hard(student, labels)
            total = total + self.alpha * hard.sum() / _count(known.sum(), num_items)
        return total

    def _of_tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        classes: Tensor | None,
        num_items: Tensor | float | None,
    ) -> Tensor:
        if teacher is None:
            teacher = student.detach()
        _check_classes(student, teacher, classes, self.on_outputs)
        rows, known = scored_rows(
            (student.shape[0], student.shape[1]),
            labels,
            shift=self.shift,
            ignore_index=self.ignore_index,
        )
        rows = rows.to(student.device)
        # Chunks pick their rows from every tensor alike, so labels go back to their places.
        flat = rows.new_zeros(student.shape[0] * student.shape[1])
        if known is not None:
            flat[rows] = known.to(rows)
        others = [teacher.flatten(0, 1), flat]
        if classes is not None:
            others.append(classes.flatten(0, 1))
        with_labels = labels is not None
        total = chunked_sum(
            lambda *part: self._of_rows(*part, with_labels=with_labels),
            student.flatten(0, 1),
            rows,
            *others,
            chunk=self.chunk,
        )
        return total / _count(torch.tensor(len(rows)), num_items)

    def _of_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        classes: Tensor | None = None,
        *,
        with_labels: bool,
    ) -> Tensor:
        student = as_logits(student, self.student_form)
        total = student.new_zeros(len(student))
        known = labels if with_labels else None
        if self.alpha < 1:
            teacher = teacher if classes is not None else as_logits(teacher, self.teacher_form)
            soft = self._soft(*_wide(student, teacher, known, classes))
            total = total + (1 - self.alpha) * soft
        if self.alpha > 0:
            total = total + self.alpha * self._hard(student, labels)
        return total

    def _of_values(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        num_items: Tensor | float | None,
    ) -> Tensor:
        student = student.to(compute_dtype(student.dtype))
        total = student.new_zeros(())
        if self.alpha < 1 and teacher is not None and self.on_outputs:
            soft = self._soft(student, _like(teacher, student, "teacher"), None, None)
            total = total + (1 - self.alpha) * _mean(soft, num_items)
        if self.alpha > 0 and labels is not None:
            away = (student - _like(labels, student, "labels")).square()
            total = total + self.alpha * _mean(away.reshape(len(student), -1).mean(1), num_items)
        return total

    def _of_features(self, features: tuple[Tensor, Tensor] | None, labels: Tensor | None) -> Tensor:
        if features is None:
            raise MissingInput(
                f"The loss {self.on_features[0].loss.name} compares features: pass features=, "
                "those of the student and of the teacher."
            )
        losses = [term.weight * term.loss(*features, labels) for term in self.on_features]
        return torch.stack(losses).sum()


def _wide(
    student: Tensor | None,
    teacher: Tensor | None,
    labels: Tensor | None,
    classes: Tensor | None,
) -> tuple[Any, Any, Tensor | None, Tensor | None]:
    """The teacher in the student's dtype: a comparison has one."""
    if student is not None and teacher is not None:
        teacher = teacher.to(student)
    return student, teacher, labels, classes


def _mean(rows: Tensor, num_items: Tensor | float | None) -> Tensor:
    return rows.sum() / _count(torch.tensor(rows.numel()), num_items)


def _count(rows: Tensor, num_items: Tensor | float | None) -> Tensor:
    """What a sum is divided by; a batch in which nothing counts has the loss 0, not NaN."""
    return rows.clamp_min(1) if num_items is None else torch.as_tensor(num_items)


def _like(given: Tensor, student: Tensor, what: str) -> Tensor:
    if given.numel() != student.numel() or len(given) != len(student):
        raise DataError(
            f"The student gives values {list(student.shape)}, and the {what} are "
            f"{list(given.shape)}."
        )
    return given.detach().to(student).reshape(student.shape)


def require_coarse(terms: Sequence[Term], kept: int) -> None:
    """Refuse losses that do not mean the same on a few of the teacher's classes.

    Args:
        terms: Losses of outputs.
        kept: How many of the best classes there are.

    Raises:
        InvalidParameter: There are such losses.
    """
    whole = [term.loss.name for term in terms if not term.loss.coarse]
    if whole:
        raise InvalidParameter(
            f"The loss {' and '.join(whole)} needs all of the teacher's classes, and only {kept} "
            "of each row were kept. Keep 'full' or 'half', or use kl."
        )


def _check_classes(
    student: Tensor, teacher: Tensor, classes: Tensor | None, terms: Sequence[Term]
) -> None:
    if classes is not None:
        require_coarse(terms, classes.shape[-1])
    wanted = (*student.shape[:-1], student.shape[-1] if classes is None else classes.shape[-1] + 1)
    if tuple(teacher.shape) != wanted:
        raise DataError(
            f"The student gives {list(student.shape)} and the teacher {list(teacher.shape)}: both "
            "must have the same classes in the same order. Map the teacher's with mapping= in "
            "distill, or wrap the teacher with adapted(teacher, classes=..., common=...)."
        )
