"""``alloykit compare STUDY``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alloykit.cli.console import Json, Overwrite, console, print_json, progress_bar
from alloykit.errors import OutputExists

if TYPE_CHECKING:
    from alloykit.comparison.comparing import Comparison
    from alloykit.comparison.study import Study


def compare(
    study: Annotated[
        Path | None, typer.Argument(help="The study file: models, data, metric.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Try only this candidate or method; may be repeated.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the winner, or the one --only, to this file; the ending fits itself."
        ),
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
    from alloykit.comparison.preparing import prepare
    from alloykit.comparison.study import output_folder, read_study, study_schema

    if schema:
        print_json(study_schema())
        return
    if study is None:
        raise typer.BadParameter("name a study file, or ask for --schema.")
    if save is not None:
        _check_target(save, overwrite)
    read: Study = read_study(study)
    folder = output or output_folder(read, study)
    with progress_bar(quiet=as_json) as tell:
        tell("models and data", 0, 1)
        setting = prepare(read, study.parent)
        found = run_comparison(
            setting, wanted=only or read.candidates, folder=folder, overwrite=overwrite,
            progress=tell,
        )  # fmt: skip
    report = folder / "report.html"
    # A look at one candidate must not replace the report of all of them.
    if not (only and report.exists()):
        where = f" --output {shlex.quote(str(output))}" if output else ""
        command = f"alloykit compare {shlex.quote(str(study))}{where}"
        found.report(report, command=command, overwrite=True)
    if not as_json:
        print_leaderboard(found)
        print(f"\nReport: {report}")
    saved = None if save is None else _saved(found, only or [], save, overwrite)
    if as_json:
        print_json(_as_json(found, report, saved))
    elif saved is not None:
        print(f"Saved:  {saved}")


def _check_target(save: Path, overwrite: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if save.exists() and not overwrite:
        raise OutputExists(f"{save} exists already. Give another name, or --overwrite.")
    if not save.parent.is_dir():
        raise OutputExists(f"There is no folder {save.parent} to save {save.name} in.")
    if save.suffix not in ("", ".safetensors", ".pt2"):
        raise typer.BadParameter(
            f"winners are saved as .safetensors or .pt2; without an ending {save.name} gets the "
            "one that fits."
        )


def _saved(found: Comparison, only: Sequence[str], save: Path, overwrite: bool) -> Path:
    known = {row.candidate for row in found.rows}
    chosen = found[only[0]] if len(only) == 1 and only[0] in known else found.best
    target = save if save.suffix else save.with_suffix(chosen.suffix)
    return chosen.save(target, overwrite=overwrite)


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
    from alloykit.comparison.report.headline import headline

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
    first = headline(found.report_data())
    out.print(Text.assemble("\n", first.before, (first.name, "bold"), first.after))
    out.print(Text(found.recommendation.reason))
