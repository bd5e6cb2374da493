"""What the commands that train share: scores on test, the table of them, the file to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alloykit.cli.console import print_table
from alloykit.errors import OutputExists

if TYPE_CHECKING:
    from torch import nn

    from alloykit.comparison.setting import Setting


def scores_on_test(model: nn.Module, setting: Setting) -> dict[str, float]:
    """The task's metrics of a model on the study's test split, which is read once per model."""
    from alloykit.comparison.measuring import metrics_shown
    from alloykit.evaluation.predicting import detect_kind, log_probabilities, predict

    given = predict(model, setting.test)
    outputs = log_probabilities(given, detect_kind(given, setting.task))
    if setting.task == "regression":
        outputs = outputs.reshape(setting.test.targets.shape)
    return {
        metric.name: metric.value(outputs, setting.test.targets)
        for metric in metrics_shown(setting)
    }


def print_scores(scores: Mapping[str, Mapping[str, float]], setting: Setting) -> None:
    """One line a model, one column a metric."""
    names = list(next(iter(scores.values())))
    rows = [[model, *(values[name] for name in names)] for model, values in scores.items()]
    print_table(f"On test, {len(setting.test):,} examples", ["model", *names], rows)


def check_target(path: Path | None, suffix: str | None, overwrite: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if path is None:
        return
    if suffix is not None and path.suffix != suffix:
        raise typer.BadParameter(f"{path.name} must end in {suffix}.")
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists already. Give another name, or --overwrite.")
    if not path.parent.is_dir():
        raise OutputExists(f"There is no folder {path.parent} to save {path.name} in.")


def parsed_parameters(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, each value as YAML reads it: "hidden=[64, 32]", "pull=3", "feed=sqrt"."""
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or name in found:
            raise typer.BadParameter(f"--parameter takes NAME=VALUE, each name once. Got {text!r}.")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"the value in {text!r} cannot be read.") from None
    return found
