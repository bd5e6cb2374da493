"""``alloykit inspect A B …``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alloykit.cli.console import Json, TrustPickle, plain, print_json, print_table

if TYPE_CHECKING:
    from alloykit.comparison.description import Description
    from alloykit.comparison.inspection import Inspection

MEMBERS = ("id", "tensors", "parameters", "bytes", "dtypes", "tied_tensors")
PAIRS = ("relative_distance", "cosine", "sign_agreement")


def inspect(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoints, one or more; or recipes, statistics, results of a merge."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(help="What they were fine-tuned from: angles and signs of task vectors."),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Read no values: quick for large checkpoints.")
    ] = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Say what files hold, and of checkpoints whether they can be combined and how far apart."""
    from dataclasses import asdict

    import alloykit
    from alloykit.comparison.description import describe

    described = [describe(path, trust_pickle=trust_pickle) for path in models]
    checkpoints = [each.path for each in described if each.checkpoint]
    found = None
    if checkpoints:
        found = alloykit.inspect(
            checkpoints, base=base, values=not headers_only, trust_pickle=trust_pickle
        )
    if as_json:
        about = {**asdict(found), "combinable": found.combinable} if found else {}
        print_json({**about, "descriptions": [asdict(each) for each in described]})
        return
    for each in described:
        if len(checkpoints) < 2 or not each.checkpoint:
            _print_description(each)
    if found:
        _print_inspection(found, base)


def _print_description(described: Description) -> None:
    from alloykit.checkpoints.wording import shown
    from alloykit.errors import listing

    print(f"{shown(described.path)}: {described.kind}")
    width = max(map(len, described.facts), default=0)
    for name, value in described.facts.items():
        for number, line in enumerate(_lines(value)):
            print(f"  {name if not number else '':{width}}  {shown(line)}")
    if described.notes:
        print(f"Notes:\n{listing(described.notes)}")
    print()


def _lines(value: Any) -> list[str]:
    """A fact, a line for each of several things."""
    if isinstance(value, Mapping):
        return [f"{key}: {each}" for key, each in value.items()]
    if isinstance(value, list):
        short = all(isinstance(each, str | int | float) for each in value) and len(value) < 6
        return [", ".join(map(str, value))] if short else [str(each) for each in value]
    return [f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)]


def _print_inspection(found: Inspection, base: str | None) -> None:
    from alloykit.errors import listing

    several = len(found.members) > 1
    if several:
        print_table("Models", MEMBERS, [plain(member, MEMBERS) for member in found.members])
    integers = {n for m in found.members for n in m["integer_tensors"]}  # type: ignore[attr-defined]
    if integers:
        print(f"Integer tensors, never averaged:\n{listing(sorted(integers))}\n")
    if found.pairs:
        rows = [
            (p.first, p.second, *(getattr(p, key) for key in PAIRS), "yes" if p.identical else "no")
            for p in found.pairs
        ]
        of = "task vectors" if base else "weights"
        columns = ["", "", "distance / norm", f"cosine of {of}", f"signs of {of}", "identical"]
        print_table("How they relate", columns, rows)
    notes = found.notes if several else ()
    for title, lines in (("In the way", found.problems), ("Notes", notes)):
        if lines:
            print(f"{title}:\n{listing(lines)}\n")
    print(found.verdict)
