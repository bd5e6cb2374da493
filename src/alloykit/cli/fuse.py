"""``alloykit fuse STUDY --head concat -o OUT.pt2``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alloykit.cli.console import Json, Overwrite, print_json, progress_bar
from alloykit.cli.judged import (
    check_target,
    keep_inputs,
    parsed_parameters,
    print_scores,
    scores_on_test,
)

if TYPE_CHECKING:
    from alloykit.comparison.setting import Setting
    from alloykit.comparison.study import Study
    from alloykit.fusion.fused import Fused


TAKEN = (
    *("members", "head", "validation", "source", "context", "task", "train", "seed", "progress"),
    *("out_of_fold", "augment"),
)


def fuse(
    study: Annotated[Path, typer.Argument(help="The study file: models and data.")],
    head: Annotated[
        str, typer.Option(help="Registered fusion head; 'alloykit methods' lists them.")
    ] = "concat",
    source: Annotated[
        str, typer.Option(help="What the head is fed: the members' outputs, or their features.")
    ] = "outputs",
    context: Annotated[
        str | None,
        typer.Option(help="What describes an example to heads that ask: inputs or features."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="NAME=VALUE of the head; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the fused model: a .pt2 program.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw which member is believed for which class: .png or .svg."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the head and of the check.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a head over frozen members on the study's validation split; report on its test split.

    The head learns which member to believe, and for what. Whether it beats the members' plain mean
    is said from rows that it was not trained on.
    """
    import alloykit
    from alloykit.checkpoints.exporting import save_exported
    from alloykit.comparison.preparing import prepare
    from alloykit.comparison.study import read_study
    from alloykit.data.batches import placed

    check_target(output, [".pt2"], overwrite)
    check_target(picture, [".png", ".svg"], overwrite)
    parameters = parsed_parameters(parameter or (), TAKEN)
    read: Study = read_study(study)
    keep_inputs(study, read.model_dump(), [output, picture])
    with progress_bar(quiet=as_json) as tell:
        tell("models and data", 0, 1)
        setting = prepare(read, study.parent)
        made = alloykit.fuse(
            {member.name: member.module for member in setting.members},
            head,
            validation=setting.validation,
            source=source,  # type: ignore[arg-type]
            context=context,  # type: ignore[arg-type]
            task=setting.task,
            train=setting.train,
            seed=seed,
            progress=tell,
            **parameters,
        )
        scores = _scores(made, setting)
    if output is not None:
        save_exported(made, output, placed(setting.validation.inputs_sample(), made),
                      overwrite=overwrite)  # fmt: skip
    if picture is not None:
        made.report.picture(picture)
    if as_json:
        print_json({"report": made.report.to_json(), "test": scores,
                    "saved": None if output is None else str(output)})  # fmt: skip
        return
    print(made.report)
    print_scores(scores, setting)
    if output is not None:
        print(f"Saved: {output}")


def _scores(made: Fused, setting: Setting) -> dict[str, dict[str, float]]:
    from alloykit.api.ensembling import ensemble
    from alloykit.comparison.measuring import best_single

    members = {member.name: member.module for member in setting.members}
    single = best_single(setting).name
    models: dict[str, Any] = {
        f"{single} (best single)": members[single],
        "plain mean": ensemble(members, task=setting.task),
        "fused": made,
    }
    return {name: scores_on_test(model, setting) for name, model in models.items()}
