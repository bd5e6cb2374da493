"""A study file: what to compare, on which data, as YAML checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, Field

from alloykit.checkpoints.wording import counted
from alloykit.comparison.federation_spec import DealSpec, FederationSpec, settings_of
from alloykit.comparison.training_spec import Strict, TrainingSpec
from alloykit.data.split_spec import SplitSpec
from alloykit.errors import AlloyError, InvalidStudy, did_you_mean, listing
from alloykit.types import Task

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000


class MemberSpec(Strict):
    """One model: its file, and how to build what the file's tensors go into."""

    name: str | None = Field(
        None, description="What the report calls it; by default the file's stem."
    )
    checkpoint: str | None = Field(
        None, description="Its weights: .safetensors, .pt, .npz, a sharded folder."
    )
    architecture: str | None = Field(
        None,
        description="package.module:callable that builds the model, or a torch.export .pt2 file.",
    )
    arguments: dict[str, Any] = Field(default={}, description="Arguments of that callable.")
    mean: float | list[float] | None = Field(
        None, description="Of the inputs it was trained on: it sees (input - mean) / std."
    )
    std: float | list[float] | None = Field(None, description="The deviation to go with it.")
    size: int | list[int] | None = Field(None, description="What its inputs are resized to.")
    classes: list[int] | None = Field(
        None,
        description="Which class each of its outputs is, where it knows fewer than 'classes' of "
        "the study, or has them in another order.",
    )


class DataSpec(Strict):
    """The splits. Validation chooses; test reports, once."""

    validation: SplitSpec
    test: SplitSpec
    train: SplitSpec | None = Field(
        None,
        description="What the members were trained on, or such data: its inputs re-estimate "
        "BatchNorm statistics; students and retrained models learn from it, see 'training'.",
    )
    partitions: dict[str, SplitSpec] | None = Field(
        None, description="Client -> its data, for 'federation'."
    )
    deal: DealSpec | None = Field(
        None, description="How train is dealt out to simulated clients, in place of partitions."
    )
    unlabelled: SplitSpec | None = Field(
        None, description="The server's own data, for FedDF; labels are not looked at."
    )


class StudentSpec(Strict):
    """The architecture of students and retrained models, where it is not the members'."""

    architecture: str = Field(description="package.module:callable that builds the model.")
    arguments: dict[str, Any] = Field(default={}, description="Arguments of that callable.")


class Study(Strict):
    """A whole study file."""

    title: str = Field("Comparison", description="What the report calls it.")
    task: Task = Field("classification", description="classification, regression or tokens.")
    architecture: str | None = Field(
        None, description="The members' architecture, if they share it."
    )
    arguments: dict[str, Any] = Field(default={}, description="Arguments of that architecture.")
    members: list[MemberSpec] = Field(description="The models to combine, two or more.")
    base: str | None = Field(
        None, description="The checkpoint that the members were fine-tuned from."
    )
    ordered: bool = Field(False, description="Members are checkpoints of one run, oldest first.")
    data: DataSpec
    classes: int | None = Field(
        None, ge=2, description="Number of classes; by default the outputs'."
    )
    metric: str | None = Field(
        None, description="Main metric; by default accuracy, rmse or perplexity."
    )
    candidates: list[str] | None = Field(
        None, description="Candidates or methods to try; default all."
    )
    on_overlap: Literal["error", "drop", "allow"] = Field(
        "error", description="What to do when validation and test share examples."
    )
    training: TrainingSpec | None = Field(
        None,
        description="How students and retrained models learn; without it none is trained.",
    )
    student: StudentSpec | None = Field(
        None, description="Another architecture for students and retrained models."
    )
    federation: FederationSpec | None = Field(
        None, description="How clients train one model in rounds; without it none do."
    )
    seed: int = Field(0, ge=0, description="Of the bootstrap and of random methods.")
    resamples: int = Field(1000, ge=100, description="Bootstrap resamples.")
    batch_size: int = Field(256, ge=1, description="Examples per batch.")
    output: str | None = Field(
        None, description="Folder for rows and report; default <study>-output."
    )
    trust_pickle: bool = Field(False, description="Open .pt files that refer to unknown classes.")

    def federation_mistakes(self) -> list[str]:
        """What is wrong with the federation's numbers, and with where its clients' data are."""
        wrong = []
        if self.data.partitions is not None and self.data.deal is not None:
            wrong.append("data: 'partitions' and 'deal' exclude each other")
        if self.data.deal is not None and self.data.train is None:
            wrong.append("data.deal: there is no data.train that could be dealt out")
        if self.federation is not None:
            try:
                settings_of(self.federation)
            except AlloyError as error:
                wrong += [f"federation: {line.strip()}" for line in str(error).splitlines()[1:]]
        return wrong


AStudy = TypeVar("AStudy", bound=Study)

SECTIONS: Mapping[object, type[BaseModel]] = {
    "members": MemberSpec,
    "data": DataSpec,
    "training": TrainingSpec,
    "student": StudentSpec,
    "federation": FederationSpec,
    "deal": DealSpec,
    "unlabelled": SplitSpec,
    "train": SplitSpec,
    "validation": SplitSpec,
    "test": SplitSpec,
}


def output_folder(study: Study, path: Path) -> Path:
    """Where the rows and the report of a study file go."""
    return path.parent / (study.output or f"{path.stem}-output")


def study_schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    return Study.model_json_schema()


def read_study(path: Path, kind: type[AStudy] = Study) -> AStudy:  # type: ignore[assignment]
    """Read and check a study file.

    Args:
        path: The file.
        kind: What it must be: a study of members, or one of a federation.

    Raises:
        InvalidStudy: Not YAML, or with mistakes; every one is listed, with the nearest known key.
    """
    return check_study(_parsed(path), kind, where=str(path))


def check_study(
    content: Mapping[str, Any],
    kind: type[AStudy] = Study,  # type: ignore[assignment]
    *,
    where: str = "The study",
) -> AStudy:
    """Check a study given as a mapping."""
    try:
        study = kind.model_validate(content)
    except pydantic.ValidationError as error:
        lines = [_said(mistake) for mistake in error.errors()]
        raise InvalidStudy(
            f"{where} has {len(lines)} mistake{'s' if len(lines) > 1 else ''}:\n{listing(lines)}\n"
            "All keys: alloykit compare --schema."
        ) from None
    lacking = [
        f"members.{i}: no architecture, neither here nor for the whole study"
        for i, member in enumerate(study.members)
        if not (member.architecture or study.architecture)
    ]
    lacking += [
        f"members.{i}: classes need the number of all classes, the study's key 'classes'"
        for i, member in enumerate(study.members)
        if member.classes is not None and study.classes is None
    ]
    lacking += [
        f"members.{i}: no checkpoint"
        for i, member in enumerate(study.members)
        if not member.checkpoint and not (member.architecture or "").endswith(".pt2")
    ]
    lacking += study.federation_mistakes()
    if lacking:
        raise InvalidStudy(
            f"{where} has {counted(len(lacking), 'mistake')}:\n{listing(lacking)}\n"
            "An architecture is package.module:callable, or a .pt2 file of torch.export."
        )
    return study


def default_metric(task: Task) -> str:
    """The main metric of a task where none is asked for."""
    return {"classification": "accuracy", "regression": "rmse", "tokens": "perplexity"}[task]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = sorted({key for key in map(str, keys) if list(map(str, keys)).count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"key {twice[0]!r} is there twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidStudy(f"{path} is over {MOST_BYTES} bytes, too large for a study file.")
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InvalidStudy(f"There is no study file {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidStudy(f"{path} is not a readable YAML file: {error}") from None
    if not isinstance(content, dict):
        raise InvalidStudy(f"{path} must be a mapping of keys, not a {type(content).__name__}.")
    if _expanded_size(content, {}) > MOST_VALUES:
        raise InvalidStudy(f"{path} unfolds to over {MOST_VALUES} values, or holds itself.")
    return content


def _expanded_size(value: Any, known: dict[int, float]) -> float:
    """Number of values when every alias is written out; infinite where one holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(value)]


def _said(mistake: Any) -> str:
    """One pydantic mistake in our words, with the nearest known key for unknown ones."""
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = _known_keys(mistake["loc"][:-1])
        return f"{place}: there is no such key.{did_you_mean(str(mistake['loc'][-1]), known)}"
    if mistake["type"] == "missing":
        return f"{place}: is missing"
    return f"{place}: {mistake['msg']}. Got {mistake['input']!r}."


def _known_keys(place: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Study
    for part in place:
        model = SECTIONS.get(part, model)
    return list(model.model_fields)
