"""``alloykit distill STUDY --teacher average -o student.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alloykit.cli.console import Json, Overwrite, print_json, progress_bar
from alloykit.cli.judged import (
    check_target,
    keep_inputs,
    parsed_parameters,
    print_scores,
    scores_on_test,
)
from alloykit.errors import InvalidParameter, MissingInput, UnknownName, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from alloykit.comparison.setting import Setting
    from alloykit.comparison.study import Study


TAKEN = (
    *("student", "teachers", "train", "validation", "loss", "temperature", "alpha", "task"),
    *("training", "stored", "keep", "snapshot", "on_overlap", "progress"),
    *("augment", "accelerator"),
)


def distill(
    study: Annotated[
        Path, typer.Argument(help="The study file: models, data with train, and training.")
    ],
    teacher: Annotated[
        str, typer.Option(help="An ensemble rule, a fusion head, or the name of one member.")
    ] = "average",
    start: Annotated[
        str,
        typer.Option(help="Of the student: blank, average (of the members' weights), or a member."),
    ] = "blank",
    loss: Annotated[
        str | None, typer.Option(help="Registered distillation loss; kl, or values by default.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; softens both sides.")] = 2.0,
    alpha: Annotated[
        float, typer.Option(help="Weight of the labels' loss, 0 to 1; 0 uses no labels.")
    ] = 0.5,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="NAME=VALUE of the loss; may be repeated."),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(help="Of the teacher's outputs: full, half, or so many of the best classes."),
    ] = "full",
    stored: Annotated[
        Path | None, typer.Option(help="Folder of the teacher's outputs, made once and reused.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(help="Folder to go on from after an interruption, to the same bits."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the student: .safetensors.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a student on what the study's members say together; report on its test split.

    It learns on the study's train split, as its key 'training' says (epochs and the like), and
    keeps the epoch that is best on validation. Its architecture is the members', or that of the
    study's key 'student'.
    """
    import alloykit
    from alloykit.comparison.measuring import best_single
    from alloykit.comparison.preparing import prepare
    from alloykit.comparison.study import read_study
    from alloykit.comparison.training_trial import starting_point
    from alloykit.training.settings import Training

    check_target(output, [".safetensors"], overwrite)
    parameters = parsed_parameters(parameter or (), TAKEN)
    read: Study = read_study(study)
    keep_inputs(study, read.model_dump(), [output])
    if read.data.train is None:
        raise MissingInput(f"{study} has no data.train, which the student would learn on.")
    with progress_bar(quiet=as_json) as tell:
        tell("models and data", 0, 1)
        setting = prepare(read, study.parent)
        # First, because it says by name which member cannot be run.
        single = best_single(setting).name
        taught_by = _teacher(teacher, setting)
        done = alloykit.distill(
            starting_point(_start(start, setting), setting),
            taught_by,
            train=setting.train,
            validation=setting.validation,
            loss=loss,
            temperature=temperature,
            alpha=alpha,
            task=setting.task,
            training=setting.training or Training(),
            keep=int(keep) if keep.isdecimal() else keep,  # type: ignore[arg-type]
            stored=stored,
            snapshot=snapshot,
            on_overlap=read.on_overlap,
            progress=tell,
            **parameters,
        )
        scores = _scores(done.student, taught_by, single, setting)
    if output is not None:
        alloykit.save_checkpoint(done.student, output, overwrite=overwrite)
    if as_json:
        print_json({"facts": dict(done.facts), "history": done.history.to_json(), "test": scores,
                    "saved": None if output is None else str(output)})  # fmt: skip
        return
    seconds = done.facts["seconds"]
    print(
        f"{done.facts['loss']}; {len(done.history.epochs)} epochs in {seconds['training']:.1f} s "
        f"after {seconds['teacher']:.1f} s of the teacher; epoch {done.history.best} was kept."
    )
    print_scores(scores, setting)
    if output is not None:
        print(f"Saved: {output}")


def _teacher(name: str, setting: Setting) -> nn.Module:
    """The members together, by a rule or a head; or one of them."""
    import alloykit
    from alloykit.registry import ensemble_rules, fusion_heads

    members = {member.name: member.module for member in setting.members}
    if name in members:
        return members[name]
    if name in ensemble_rules.names():
        return alloykit.ensemble(members, name, validation=setting.validation, task=setting.task)
    if name in fusion_heads.names():
        return alloykit.fuse(members, name, validation=setting.validation, task=setting.task)
    known = [*members, *ensemble_rules.names(), *fusion_heads.names()]
    raise UnknownName(
        f"There is no teacher {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."
    )


def _start(name: str, setting: Setting) -> tuple[str, ...]:
    """The members whose average the student starts from; () for a blank one."""
    members = [member.name for member in setting.members]
    group = tuple(member.name for member in setting.alike)
    if name in ("blank", *members):
        return (name,) if name in members else ()
    if name != "average":
        raise UnknownName(
            f"There is no start {name!r}.{did_you_mean(name, members)} "
            f"There are: blank, average, {', '.join(members)}."
        )
    if len(group) < 2:
        raise InvalidParameter("No two members have the same tensors, so there is no average.")
    return group


def _scores(
    student: nn.Module, taught_by: nn.Module, single: str, setting: Setting
) -> dict[str, dict[str, float]]:
    models = {
        f"{single} (best single)": setting.member(single).module,
        "teacher": taught_by,
        "student": student,
    }
    return {name: scores_on_test(model, setting) for name, model in models.items()}
