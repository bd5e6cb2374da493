"""What a comparison is about: opened members, data, metric and choices, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.matching import matching_groups
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.comparison.kept import Kept
from alloykit.data.examples import Examples
from alloykit.data.splits import OnOverlap, check_splits, shared
from alloykit.ensembling.adapting import Adapted
from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError, MissingInput, listing
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.predicting import detect_kind, log_probabilities, predict
from alloykit.federation.settings import Federation
from alloykit.fusion.collecting import gather
from alloykit.fusion.gathered import Gathered
from alloykit.training.retraining import blank
from alloykit.training.settings import Training
from alloykit.types import Checkpoint, Kind, Predictions, Split, Task


@dataclass(frozen=True)
class Member:
    """One of the models being combined.

    Attributes:
        name: What the user calls it.
        module: The model, in eval mode.
        source: The file that it came from, or "in memory".
    """

    name: str
    module: nn.Module
    source: str = "in memory"

    @property
    def architecture(self) -> str:
        """The class that it is an instance of."""
        return type(self.module).__name__

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors, under its name, without a wrapper's prefix."""
        return open_checkpoint(self.module, name=self.name)

    @cached_property
    def digest(self) -> str:
        """Digest of all its tensors."""
        return content_digest(self.checkpoint)


@dataclass(frozen=True)
class Setting:
    """Everything that the candidates of one comparison share.

    Attributes:
        members: The models being combined, two or more.
        validation: The split that chooses.
        test: The split that reports.
        task: How outputs and targets are read.
        metric: The main metric.
        batch_norm: Examples for re-estimating BatchNorm statistics, or None to leave them.
        base: The checkpoint that members were fine-tuned from, where there is one.
        base_source: The file that the base came from, or "in memory".
        ordered: Whether the members are checkpoints of one run, oldest first.
        train: Examples that students and retrained models learn from, or None.
        training: How they learn; None leaves them out.
        student: Builds a student of another architecture; by default they are built like the
            largest group of members that share one.
        partitions: Client -> the examples that never leave it, for rounds of federated learning.
        federation: How these rounds go; None leaves them out.
        unlabelled: The server's own data, for FedDF; by default the inputs of ``train``.
        leaked: Number of validation examples that are also in ``train``.
        kept: Where what candidates learn is kept.
        seed: Of the bootstrap and of methods that draw random numbers.
        resamples: Bootstrap resamples.
        title: What the report calls it.
    """

    members: tuple[Member, ...]
    validation: Examples
    test: Examples
    task: Task
    metric: Metric
    batch_norm: Examples | None = None
    base: Checkpoint | None = None
    base_source: str = "in memory"
    ordered: bool = False
    train: Examples | None = None
    training: Training | None = None
    student: Callable[[], nn.Module] | None = None
    partitions: Mapping[str, Examples] = field(default_factory=dict)
    federation: Federation | None = None
    unlabelled: Examples | None = None
    leaked: int = 0
    kept: Kept = field(default_factory=Kept, compare=False)
    seed: int = 0
    resamples: int = 1000
    title: str = "Comparison"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise MissingInput(
                f"A comparison takes at least two models; {len(self.members)} was given."
                if self.members
                else "A comparison takes at least two models; none were given."
            )
        names = [member.name for member in self.members]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise MissingInput(f"Models need names of their own; given twice: {', '.join(twice)}.")

    def member(self, name: str) -> Member:
        """The member of that name."""
        return next(member for member in self.members if member.name == name)

    def examples(self, split: Split) -> Examples:
        """The examples of that split."""
        examples = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if examples is None:
            raise MissingInput(f"The comparison has no {split} split.")
        return examples

    @cached_property
    def groups(self) -> tuple[tuple[Member, ...], ...]:
        """The members by architecture: those whose tensors match in names, shapes and kinds.

        Members that are adapted differently stand apart: weights that learned on inputs normalised
        in one way are not to be averaged with those that learned on another.
        """
        positions = matching_groups([member.checkpoint for member in self.members])
        groups = (tuple(self.members[i] for i in group) for group in positions)
        return tuple(part for group in groups for part in _adapted_alike(group))

    @property
    def alike(self) -> tuple[Member, ...]:
        """The largest group, the first of equal ones: what is averaged, and what is built anew."""
        return max(self.groups, key=len)

    @cached_property
    def validation_predictions(self) -> Predictions:
        """The members' stack on validation, predicted once."""
        return self._predictions("validation")

    @cached_property
    def test_predictions(self) -> Predictions:
        """The members' stack on test, predicted once."""
        return self._predictions("test")

    @cached_property
    def train_predictions(self) -> Predictions:
        """The members' stack on train, which students learn from."""
        return self._predictions("train")

    def predictions(self, split: Split) -> Predictions:
        """The members' stack on that split, predicted once."""
        predictions: Predictions = getattr(self, f"{split}_predictions")
        return predictions

    @cached_property
    def validation_features(self) -> Gathered:
        """The members' features on validation, computed once."""
        return self._features("validation")

    @cached_property
    def test_features(self) -> Gathered:
        """The members' features on test, computed once."""
        return self._features("test")

    def features(self, split: Split) -> Gathered:
        """The members' last features on validation or test."""
        return self.validation_features if split == "validation" else self.test_features

    def _features(self, split: Split) -> Gathered:
        members = {member.name: member.module for member in self.members}
        examples = self.examples(split)
        try:
            return gather(members, examples, task=self.task, source="features", context="features")
        except DataError as error:
            raise MissingInput(f"It needs features of every member. {error}") from error

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Whether each member gives logits, probabilities or values."""
        first = self.validation.take(256)
        return {m.name: detect_kind(_predicted(m, first), self.task) for m in self.members}

    def _predictions(self, split: Split) -> Predictions:
        examples = self.examples(split)
        outputs = [self._logs(member, examples) for member in self.members]
        self._same_shape(outputs)
        self._labels_in_range(outputs[0], examples)
        kind: Kind = "values" if self.task == "regression" else "logits"
        return Predictions(
            outputs=member_stack(outputs, [kind] * len(outputs), self.task),
            kind=kind,
            members=tuple(member.name for member in self.members),
            targets=examples.targets,
            split=split,
        )

    def _logs(self, member: Member, examples: Examples) -> Tensor:
        """Log-probabilities; values with one output per example as [example, 1]."""
        outputs = log_probabilities(_predicted(member, examples), self.kinds[member.name])
        return outputs.unsqueeze(1) if outputs.dim() == 1 else outputs

    def _same_shape(self, outputs: Sequence[Tensor]) -> None:
        shapes = [tuple(output.shape[1:]) for output in outputs]
        if len(set(shapes)) > 1:
            lines = [
                f"{member.name}   {list(shape)} per example"
                for member, shape in zip(self.members, shapes, strict=True)
            ]
            raise DataError(
                "These models have no common output: their outputs differ in shape.\n"
                f"{listing(lines)}\nCompare only models that predict the same thing."
            )

    def _labels_in_range(self, output: Tensor, examples: Examples) -> None:
        if self.task == "regression" or output.dim() < 2 or output.shape[-1] == 1:
            return
        classes, highest = output.shape[-1], int(examples.targets.max())
        if highest >= classes:
            raise DataError(
                f"The {examples.name} labels go up to {highest}, and the models tell {classes} "
                f"classes apart (0 to {classes - 1}). Check the labels, or the models."
            )

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this comparison: a resumed run must have the same."""
        return {
            "alloykit": metadata.version("alloykit"),
            "members": [[member.name, member.digest] for member in self.members],
            "validation": self.validation.digest,
            "test": self.test.digest,
            "batch_norm": self.batch_norm.digest if self.batch_norm else None,
            "batch_norm_batches": None
            if self.batch_norm is None
            else [len(targets) for _, targets in self.batch_norm.batches()],
            "base": content_digest(self.base) if self.base else None,
            "task": self.task,
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "ordered": self.ordered,
            "train": self.train.digest if self.train is not None and self.training else None,
            "training": self.training.to_json() if self.training else None,
            "student": _built(self.student, self.seed) if self.student and self.training else None,
            "partitions": [[name, e.digest] for name, e in self.partitions.items()]
            if self.federation
            else None,
            "federation": self.federation.to_json() if self.federation else None,
            "unlabelled": self.unlabelled.digest if self.unlabelled else None,
            "seed": self.seed,
            "resamples": self.resamples,
        }


def _predicted(member: Member, examples: Examples) -> Tensor:
    """The member's outputs; whatever goes wrong is said with its name."""
    try:
        return predict(member.module, examples)
    except Exception as error:
        raise DataError(
            f"Member {member.name} cannot be run on the {examples.name} examples: {error}"
        ) from error


def _built(build: Callable[[], nn.Module], seed: int) -> list[Any]:
    """How a builder is told from others: by its name, and by what it builds."""
    name = getattr(build, "__qualname__", type(build).__name__)
    if isinstance(build, partial):
        name = ", ".join(str(argument) for argument in build.args)
    tensors = blank(build, seed).state_dict().items()
    return [str(name), [f"{key} {list(tensor.shape)} {tensor.dtype}" for key, tensor in tensors]]


def _adapted_alike(group: Sequence[Member]) -> list[tuple[Member, ...]]:
    """The group in parts that treat inputs and classes in the same way."""
    parts: dict[object, list[Member]] = {}
    for member in group:
        module = member.module
        key = module.adaptation() if isinstance(module, Adapted) else None
        parts.setdefault(key, []).append(member)
    return [tuple(part) for part in parts.values()]


def apart(
    partitions: Mapping[str, Examples],
    judging: Sequence[Examples],
    *,
    task: Task,
    on_overlap: OnOverlap,
) -> dict[str, Examples]:
    """The partitions without what is in the judging splits; clients may share examples.

    Raises:
        DataError: Empty partitions, or labels that are no classes.
        DataLeak: Examples that are in a judging split too, where that is an error.
    """
    found = {}
    for name, examples in partitions.items():
        try:
            found[name] = check_splits([examples, *judging], task=task, on_overlap=on_overlap)[0]
        except DataError as error:
            raise type(error)(f"Partition {name}: {error}") from None
    return found


def leaked(train: Examples | None, validation: Examples) -> int:
    """Number of validation examples that are also training examples."""
    return 0 if train is None else len(shared(validation, train))


def source_of(model: Any) -> str:
    """How the report names where a model came from."""
    return str(model) if isinstance(model, str | Path) else "in memory"
