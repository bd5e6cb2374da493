"""``alloykit federate STUDY -o model.safetensors``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alloykit.cli.console import Json, Overwrite, print_json, print_table, progress_bar
from alloykit.cli.judged import check_target, keep_inputs, print_scores, scores_on_test

if TYPE_CHECKING:
    from torch import nn

    from alloykit.comparison.federated_study import FederatedSetting
    from alloykit.federation.round_history import FederationHistory, RoundResult

MOST_ROUNDS = 20
"""Lines in the table; of more rounds, evenly spaced ones and the last."""

MOST_REASONS = 5


def federate(
    study: Annotated[
        Path, typer.Argument(help="The study file: architecture, data of the clients, federation.")
    ],
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How many; by default what the study says.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Another aggregator than the study's, by name.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(help="Folder to go on from after an interruption, to the same bits."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the model: .safetensors, or a .pt2 program."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the score against rounds and megabytes: .png, .svg or .pdf."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Let the clients of a study train one model in rounds; report on its test split.

    Nothing is sent anywhere: clients are simulated in this process, each with its own data. The
    study says what the model is (architecture), what the clients have (data.partitions, or
    data.deal) and how the rounds go (federation).
    """
    from alloykit.api.federating import federate as run
    from alloykit.comparison.federated_study import FederatedStudy, prepare_federation
    from alloykit.comparison.study import read_study

    check_target(output, [".safetensors", ".pt2"], overwrite)
    check_target(picture, [".png", ".svg", ".pdf"], overwrite)
    read = read_study(study, FederatedStudy)
    keep_inputs(study, read.model_dump(), [output, picture])
    with progress_bar(quiet=as_json) as tell:
        tell("model and data", 0, 1)
        setting = prepare_federation(read, study.parent)
        given = _given(setting, rounds, method)
        done = run(
            setting.model,
            setting.partitions,
            validation=setting.validation,
            unlabelled=setting.unlabelled,
            task=setting.task,
            snapshot=snapshot,
            on_overlap="allow",
            progress=tell,
            **given,
        )
        scores = {"federated": scores_on_test(done.model, setting)}
    if output is not None:
        _save(done.model, output, setting, overwrite)
    if picture is not None:
        from alloykit.federation.round_picture import picture as draw

        draw(done.history, picture)
    if as_json:
        print_json({"settings": given, "history": done.history.to_json(), "test": scores,
                    "saved": None if output is None else str(output)})  # fmt: skip
        return
    _print_rounds(done.history, len(setting.partitions))
    print_scores(scores, setting)
    for path in (output, picture):
        if path is not None:
            print(f"Saved: {path}")


def _given(setting: FederatedSetting, rounds: int | None, method: str | None) -> dict[str, Any]:
    """The study's settings, with what the command line says instead."""
    found = setting.settings.to_json()
    if rounds is not None:
        found["rounds"] = rounds
    if method is not None and method != found["method"]:
        found |= {"method": method, "parameters": {}}
    return found


def _save(model: nn.Module, path: Path, setting: FederatedSetting, overwrite: bool) -> None:
    import alloykit
    from alloykit.data.batches import placed

    if path.suffix == ".safetensors":
        alloykit.save_checkpoint(model, path, overwrite=overwrite)
        return
    example = placed(setting.validation.inputs_sample(), model)
    alloykit.save_exported(model, path, example, overwrite=overwrite)


def _print_rounds(history: FederationHistory, clients: int) -> None:
    from alloykit.checkpoints.wording import counted

    rows = [_row(each, moved) for each, moved in _shown(history)]
    score = history.metric.replace("_", " ")
    columns = ["round", score, "training loss", "counted", "left out", "MB so far", "seconds"]
    print_table(f"{counted(clients, 'client')}, scores on validation", columns, rows)
    reasons = Counter(left.reason for each in history.rounds for left in each.record.left_out)
    for reason, times in reasons.most_common(MOST_REASONS):
        print(f"Left out {counted(times, 'time')}: {reason}")


def _shown(history: FederationHistory) -> Iterator[tuple[RoundResult, int]]:
    every = list(zip(history.rounds, history.moved, strict=True))
    if len(every) <= MOST_ROUNDS:
        return iter(every)
    places = {round(i * (len(every) - 1) / (MOST_ROUNDS - 1)) for i in range(MOST_ROUNDS)}
    return iter(every[place] for place in sorted(places))


def _row(each: RoundResult, moved: int) -> list[object]:
    return [
        each.number,
        "–" if each.score is None else each.score,
        "–" if each.training_loss is None else each.training_loss,
        len(each.clients),
        len(each.record.left_out),
        moved / 1e6,
        each.seconds,
    ]
