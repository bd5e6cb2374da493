"""What a teacher says on a split, computed once: in memory, or in a folder that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.batches import length, transform
from alloykit.data.examples import Examples
from alloykit.data.storage import MEMORY_LIMIT, room
from alloykit.distillation.stored_folder import StoredFolder
from alloykit.distillation.teacher import Source
from alloykit.distillation.top_k import top_k
from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.predicting import detect_kind, log_probabilities
from alloykit.training.rows import Columns
from alloykit.types import Task

Keep = Literal["full", "half"] | int
"""float32; float16 log-probabilities; or the k best classes and the mass of all others."""

Progress = Callable[[str, int, int], None]
CLASS_NUMBERS = torch.int32


class Column:
    """Rows of a stored tensor in the dtype that losses compute in.

    Example:
        >>> Column(torch.tensor([[0.5], [1.5]], dtype=torch.float16))[torch.tensor([1])]
        tensor([[1.5000]])
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: Tensor) -> Tensor:
        found = self.tensor[rows]
        return found.float() if found.is_floating_point() else found.long()


class StoredOutputs:
    """A teacher's outputs on one split, by position; made by ``stored_outputs``.

    Attributes:
        outputs: ``[example, *, class]`` log-probabilities, values, or k + 1 log-probabilities.
        classes: ``[example, *, k]`` numbers of the classes kept, or None for all.
        keep: What was kept.
        identity: What it was made from: digests of data and teacher, as JSON values.
    """

    def __init__(
        self,
        outputs: Tensor,
        classes: Tensor | None = None,
        *,
        keep: Keep = "full",
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.outputs = outputs
        self.classes = classes
        self.keep = keep
        self.identity = identity or {}

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The outputs at these positions, in float32."""
        return Column(self.outputs)[rows]

    def columns(self) -> dict[str, Columns]:
        """The columns that a training loop reads: "teacher", and "classes" where few were kept."""
        found: dict[str, Columns] = {"teacher": Column(self.outputs)}
        if self.classes is not None:
            found["classes"] = Column(self.classes)
        return found

    def check_fits(self, examples: Examples) -> None:
        """Refuse outputs of other examples.

        Raises:
            DataError: Another number of examples, or another digest where it is known.
        """
        data = self.identity.get("data", "")
        if len(self) == len(examples) and data in ("", examples.digest):
            return
        counts = f"{len(self)} examples; the data has {len(examples)}"
        why = counts if len(self) != len(examples) else "other examples, or another order of them"
        raise DataError(
            f"The stored outputs of the teacher are of {why}. Compute them anew for this data."
        )


def stored_outputs(
    source: Source,
    examples: Examples,
    *,
    folder: str | Path | None = None,
    keep: Keep = "full",
    labels: bool = True,
    every: float = 1.0,
    progress: Progress | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> StoredOutputs:
    """Run a teacher over a split once, and keep what it says.

    Use it to train several students, or one for many epochs: cost falls from epochs x teacher to
    one. In a folder, outputs are written through as they come; after a crash the same call goes
    on where it stopped, and afterwards it only opens the files.

    Args:
        source: A ``Teacher``, or another callable with ``task`` and ``identity``.
        examples: The split, in its fixed order.
        folder: Where to keep them; by default in memory (memory-mapped above ``memory_limit``).
        keep: "full" is float32; "half" is float16 logarithms (probabilities in float16 would be
            zero for most of 1,000 classes); a number k keeps the k best classes in float16 and
            the mass of all others, from 1 to one less than there are classes.
        labels: Whether the source is told the targets.
        every: Seconds between two points to resume from, at least 0.
        progress: Called after each batch with (what, examples done, examples in all).
        memory_limit: Bytes kept in memory without a folder.

    Raises:
        InvalidParameter: A ``keep`` that does not fit.
        OutputExists: The folder holds outputs of other data, of another teacher, or in another
            form; all differences are listed.
        DataError: No examples, or NaN among the outputs.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> from alloykit.distillation.teacher import Teacher
        >>> split = as_examples((torch.zeros(3, 2), [0, 1, 0]), "train")
        >>> stored = stored_outputs(Teacher(torch.nn.Identity()), split)
        >>> stored[torch.tensor([2])].exp()
        tensor([[0.5000, 0.5000]])
    """
    _check_keep(keep, source.task)
    total = len(examples)
    if not total:
        raise DataError(f"The {examples.name} split has no examples for the teacher.")
    identity = {
        "data": examples.digest,
        "teacher": source.identity(),
        "keep": keep,
        "labels": labels,
    }
    place = None if folder is None else StoredFolder(Path(folder).expanduser(), identity, total)
    done, tensors = (0, {}) if place is None else place.opened()
    position, saved = 0, time.monotonic()
    for inputs, targets in examples.batches():
        if done == total:
            break
        start, position = max(done - position, 0), position + length(inputs)
        if position <= done:
            continue
        inputs, targets = transform(inputs, lambda t, s=start: t[s:]), targets[start:]  # type: ignore[misc]
        found = _kept(source(inputs, targets if labels else None), keep)
        if not tensors:
            tensors = _created(place, found, total, memory_limit)
        _write(tensors, found, done)
        done = position
        if place is not None and (done == total or time.monotonic() - saved >= every):
            place.save(done)
            saved = time.monotonic()
        if progress is not None:
            progress("teacher", done, total)
    return StoredOutputs(tensors["outputs"], tensors.get("classes"), keep=keep, identity=identity)


def given_outputs(outputs: Tensor, task: Task) -> StoredOutputs:
    """Outputs that the caller has, in the order of the training data, as a store in memory.

    Args:
        outputs: Logits, log-probabilities, probabilities, or values for regression.
        task: What they are for.

    Example:
        >>> given_outputs(torch.tensor([[0.25, 0.75]]), "classification").outputs.exp()
        tensor([[0.2500, 0.7500]])
    """
    outputs = outputs.detach().float().cpu()
    if bool(torch.isnan(outputs).any()):
        raise DataError("The teacher's outputs hold NaN.")
    if task != "regression":
        outputs = log_probabilities(outputs, detect_kind(outputs, task))
    digest = content_digest(MemoryCheckpoint({"outputs": outputs}, "outputs"))
    return StoredOutputs(outputs, identity={"teacher": digest})


def _check_keep(keep: Keep, task: Task) -> None:
    whole = isinstance(keep, int) and not isinstance(keep, bool)
    if keep not in ("full", "half") and not (whole and int(keep) >= 1):
        raise InvalidParameter(
            f"'keep' must be 'full', 'half' or a number of classes of at least 1. Got {keep!r}."
        )
    if task == "regression" and keep != "full":
        raise InvalidParameter(
            f"keep={keep!r} is for log-probabilities. Values of a regression are kept 'full'."
        )


def _kept(outputs: Tensor, keep: Keep) -> dict[str, Tensor]:
    outputs = outputs.detach().cpu()
    if isinstance(keep, str):
        return {"outputs": outputs.half() if keep == "half" else outputs.float()}
    if keep >= outputs.shape[-1]:
        raise InvalidParameter(
            f"keep={keep} of {outputs.shape[-1]} classes leaves out none. Use keep='half', or at "
            f"most {outputs.shape[-1] - 1}."
        )
    logs, classes = top_k(outputs.float(), keep)
    return {"outputs": logs.half(), "classes": classes.to(CLASS_NUMBERS)}


def _created(
    place: StoredFolder | None, found: dict[str, Tensor], total: int, memory_limit: int
) -> dict[str, Tensor]:
    shapes = {name: ((total, *t.shape[1:]), t.dtype) for name, t in found.items()}
    if place is not None:
        return place.created(shapes)
    return {name: room(shape, memory_limit, dtype) for name, (shape, dtype) in shapes.items()}


def _write(tensors: dict[str, Tensor], found: dict[str, Tensor], start: int) -> None:
    for name, part in found.items():
        if part.shape[1:] != tensors[name].shape[1:]:
            raise DataError(
                f"The teacher's outputs change in shape, from {list(tensors[name].shape[1:])} to "
                f"{list(part.shape[1:])} per example. Pad all examples to one length."
            )
        tensors[name][start : start + len(part)] = part
