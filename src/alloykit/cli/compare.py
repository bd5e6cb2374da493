"""``alloykit compare STUDY``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alloykit.cli.console import Json, Overwrite, console, print_json, progress_bar

if TYPE_CHECKING:
    from alloykit.comparison.comparing import Comparison


def compare(
    study: Annotated[
        Path | None, typer.Argument(help="The study file: models, data, metric.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Try only this candidate or method; may be repeated.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the winner (with one --only: that one) to this file."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for rows and report.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of study files, and stop.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Try every way of combining that applies, and say which is worth shipping."""
    from alloykit.comparison.comparing import run_comparison
    from alloykit.comparison.study import output_folder, prepare, read_study, study_schema
    from alloykit.errors import OutputExists

    if schema:
        print_json(study_schema())
        return
    if study is None:
        raise typer.BadParameter("name a study file, or ask for --schema.")
    if save is not None and save.exists() and not overwrite:
        raise OutputExists(f"{save} exists already. Give another name, or --overwrite.")
    read = read_study(study)
    folder = output or output_folder(read, study)
    with progress_bar(quiet=as_json) as tell:
        tell("models and data", 0, 1)
        setting = prepare(read, study.parent)
        found = run_comparison(
            setting, wanted=only or read.candidates, folder=folder, overwrite=overwrite,
            progress=tell,
        )  # fmt: skip
    command = f"alloykit compare {shlex.quote(str(study))}"
    report = found.report(folder / "report.html", command=command, study=str(study), overwrite=True)
    saved = None
    if save is not None:
        known = {row.candidate for row in found.rows if row.status == "done"}
        chosen = only[0] if only and len(only) == 1 and only[0] in known else found.best.name
        saved = found[chosen].save(save, overwrite=overwrite)
    if as_json:
        print_json(_as_json(found, report, saved))
    else:
        print_leaderboard(found)
        print(f"\nReport: {report}")
        if saved is not None:
            print(f"Saved:  {saved}")


def _as_json(found: Comparison, report: Path, saved: Path | None) -> dict[str, object]:
    from alloykit.comparison.journal import to_json

    return {
        "recommendation": found.recommendation.candidate,
        "reason": found.recommendation.reason,
        "best_single": found.best_single,
        "rows": [to_json(row) for row in found.rows],
        "warnings": list(found.warnings),
        "report": str(report),
        "saved": None if saved is None else str(saved),
    }


def print_leaderboard(found: Comparison) -> None:
    """The leaderboard, what was found between members, and the recommendation."""
    from rich.text import Text

    from alloykit.comparison.leaderboard import leaderboard_table

    metric = found.setting.metric
    out = console()
    out.print(
        leaderboard_table(
            found.rows,
            metric.name,
            higher_is_better=metric.higher_is_better,
            examples=len(found.setting.test),
            best_single=found.best_single,
            recommendation=found.recommendation.candidate,
        )
    )
    for barrier in found.barriers:
        out.print(Text(f"{barrier.first} – {barrier.second}: {barrier.verdict}"))
    for warning in found.warnings:
        out.print(Text(f"Warning: {warning}"))
    ship = Text.assemble("\nShip ", (found.recommendation.candidate, "bold"), ". ")
    out.print(ship.append(found.recommendation.reason))
