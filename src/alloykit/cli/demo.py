"""``alloykit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alloykit.cli.console import Json, print_json, progress_bar


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the models, rows and reports.")
    ] = Path("alloykit-demo"),
    as_json: Json = False,
) -> None:
    """Train small models on real data, compare every way of combining them, write the reports."""
    from alloykit.cli.compare import print_leaderboard
    from alloykit.demo import SCENES, run_scene

    results = []
    for scene in SCENES:
        with progress_bar(quiet=as_json) as tell:
            found, report = run_scene(scene, output, progress=tell)
        results.append(
            {
                "scene": scene.name,
                "recommendation": found.recommendation.candidate,
                "reason": found.recommendation.reason,
                "report": str(report),
            }
        )
        if not as_json:
            print(f"\n{scene.title}\n{'=' * len(scene.title)}\n{scene.story}\n")
            print_leaderboard(found)
            print(f"\nReport: {report}")
    if as_json:
        print_json(results)
