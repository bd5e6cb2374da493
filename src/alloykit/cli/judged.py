"""What the commands that train share: scores on test, the table of them, the file to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alloykit.cli.console import print_table
from alloykit.errors import OutputExists

if TYPE_CHECKING:
    from torch import nn

    from alloykit.comparison.measuring import Judged


def scores_on_test(model: nn.Module, setting: Judged) -> dict[str, float]:
    """The task's metrics of a model on the study's test split, which is read once per model."""
    from alloykit.comparison.measuring import metrics_shown
    from alloykit.evaluation.predicting import predict
    from alloykit.evaluation.scoring import scores

    outputs = predict(model, setting.test)
    return scores(outputs, setting.test, setting.task, metrics_shown(setting))


def print_scores(scores: Mapping[str, Mapping[str, float]], setting: Judged) -> None:
    """One line a model, one column a metric."""
    names = list(next(iter(scores.values())))
    rows = [[model, *(values[name] for name in names)] for model, values in scores.items()]
    print_table(f"On test, {len(setting.test):,} examples", ["model", *names], rows)


def check_target(path: Path | None, suffixes: Sequence[str], overwrite: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise typer.BadParameter(f"{path.name} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise OutputExists(f"{path} is a folder. Give another name.")
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists already. Give another name, or --overwrite.")
    if not path.parent.is_dir():
        raise OutputExists(f"There is no folder {path.parent} to save {path.name} in.")


def keep_inputs(study: Path, given: Mapping[str, Any], targets: Sequence[Path | None]) -> None:
    """Refuse to write over the study file or a file that it names, even with --overwrite."""
    texts = _texts(given)
    # "file.pt#entry" names an entry of a file.
    texts += [text.rpartition("#")[0] for text in texts if "#" in text]
    named = [study, *(study.parent / text for text in texts)]
    for target in targets:
        if target is None or not target.exists():
            continue
        if any(target.samefile(path) for path in named if _exists(path)):
            raise OutputExists(f"{target} is an input of {study.name}. Give another name.")


def _texts(given: Any) -> list[str]:
    if isinstance(given, Mapping):
        return [text for value in given.values() for text in _texts(value)]
    if isinstance(given, list | tuple):
        return [text for value in given for text in _texts(value)]
    return [str(given)] if isinstance(given, str | Path) else []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def parsed_parameters(given: Sequence[str], taken: Collection[str]) -> dict[str, Any]:
    """NAME=VALUE, each value as YAML reads it: "hidden=[64, 32]", "pull=3", "feed=sqrt".

    Args:
        given: As typed.
        taken: Names that the command itself gives, or that no text can give.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or name in found:
            raise typer.BadParameter(f"--parameter takes NAME=VALUE, each name once. Got {text!r}.")
        if name.strip() in taken:
            raise typer.BadParameter(
                f"{name.strip()!r} is no parameter but what the study or an option of this command "
                "says."
            )
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"the value in {text!r} cannot be read.") from None
    return found
