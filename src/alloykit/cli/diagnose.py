"""``alloykit diagnose STUDY``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alloykit.cli.console import Json, print_json, print_table


def diagnose(
    study: Annotated[Path, typer.Argument(help="The study file: models and validation data.")],
    as_json: Json = False,
) -> None:
    """Say why averaging works or fails: the loss along the straight line between members."""
    from dataclasses import asdict

    from alloykit.comparison.diagnosis import diagnose_members
    from alloykit.comparison.preparing import prepare
    from alloykit.comparison.study import read_study

    barriers = diagnose_members(prepare(read_study(study), study.parent), most_pairs=None)
    if as_json:
        print_json([asdict(barrier) for barrier in barriers])
        return
    if not barriers:
        print("No two members have the same tensors: there is no line between them to walk.")
        return
    for barrier in barriers:
        rows: list[tuple[object, ...]] = [("loss as averaged", *barrier.losses)]
        if barrier.losses_reestimated is not None:
            rows.append(("loss, BatchNorm re-estimated", *barrier.losses_reestimated))
        if barrier.errors is not None:
            rows.append(("wrong, in percent", *(round(100 * e, 1) for e in barrier.errors)))
        columns = ["at alpha", *(f"{alpha:.1f}" for alpha in barrier.alphas)]
        print_table(f"{barrier.first} – {barrier.second}", columns, rows)
        print(f"{barrier.verdict}\n")
