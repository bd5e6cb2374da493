"""From a study file to the model, the clients and the splits of a federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.comparison.client_data import partitions_of
from alloykit.comparison.federation_spec import settings_of
from alloykit.comparison.preparing import built_module
from alloykit.comparison.setting import apart
from alloykit.comparison.study import MemberSpec, Study, default_metric
from alloykit.data.examples import Examples
from alloykit.data.sources import load_split
from alloykit.data.splits import check_splits
from alloykit.errors import InvalidStudy
from alloykit.evaluation.metrics import Metric, metric
from alloykit.federation.settings import Federation
from alloykit.training.retraining import blank
from alloykit.types import Task


class FederatedStudy(Study):
    """A study whose model is trained by clients: there need not be any members."""

    members: list[MemberSpec] = Field(default=[], description="Not looked at.")


@dataclass(frozen=True, eq=False)
class FederatedSetting:
    """What a study of a federation names, loaded.

    Attributes:
        model: The server's, as the first round finds it.
        partitions: Client -> its examples.
        validation: What scores each round.
        test: The split that reports, once.
        unlabelled: The server's own data; None where there are none.
        settings: How the rounds go.
        task: What the model is for.
        metric: The main metric on test.
    """

    model: nn.Module
    partitions: Mapping[str, Examples]
    validation: Examples
    test: Examples
    unlabelled: Examples | None
    settings: Federation
    task: Task
    metric: Metric


def prepare_federation(study: FederatedStudy, folder: Path) -> FederatedSetting:
    """Load what a study of a federation names.

    Args:
        study: The checked study.
        folder: Where its relative paths start, and where its own modules are importable from.

    Raises:
        InvalidStudy: No architecture.
        MissingInput: No data for the clients.
        DataError: Data that cannot be used; examples in two splits.
    """
    settings = Federation() if study.federation is None else settings_of(study.federation)
    judging = [
        load_split(study.data.validation, "validation", folder, batch_size=study.batch_size),
        load_split(study.data.test, "test", folder, batch_size=study.batch_size),
    ]
    validation, test = check_splits(
        judging, task=study.task, classes=study.classes, on_overlap=study.on_overlap
    )
    checks: dict[str, Any] = {"task": study.task, "on_overlap": study.on_overlap}
    unlabelled = None
    if study.data.unlabelled is not None:
        given = load_split(study.data.unlabelled, "train", folder, batch_size=study.batch_size)
        unlabelled = apart({"unlabelled": given}, [validation, test], **checks)["unlabelled"]
    return FederatedSetting(
        model=_model(study, folder, settings.seed),
        partitions=apart(partitions_of(study, folder), [validation, test], **checks),
        validation=validation,
        test=test,
        unlabelled=unlabelled,
        settings=settings,
        task=study.task,
        metric=metric(study.metric or default_metric(study.task), task=study.task),
    )


def _model(study: Study, folder: Path, seed: int) -> nn.Module:
    """The server's model: the study's architecture, blank or with the base's tensors."""
    spec = study.student
    architecture = spec.architecture if spec else study.architecture
    arguments = spec.arguments if spec else study.arguments
    if architecture is None:
        raise InvalidStudy(
            "The study has no architecture, which says what model the clients train. "
            "Give architecture: package.module:callable."
        )
    build = partial(built_module, architecture, arguments, folder, study.trust_pickle)
    model = blank(build, seed)
    if study.base is not None:
        base = open_checkpoint(folder / study.base, trust_pickle=study.trust_pickle)
        load_state(model, state_dict(base))
    return model
