"""``alloykit inspect A B …``."""

from __future__ import annotations

from typing import Annotated

import typer

from alloykit.cli.console import Json, TrustPickle, plain, print_json, print_table

MEMBERS = ("id", "tensors", "parameters", "bytes", "dtypes", "tied_tensors")
PAIRS = ("relative_distance", "cosine", "sign_agreement")


def inspect(
    models: Annotated[list[str], typer.Argument(help="Checkpoints to look at, one or more.")],
    base: Annotated[
        str | None,
        typer.Option(help="What they were fine-tuned from: angles and signs of task vectors."),
    ] = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Say from the files alone whether models can be combined, and how far apart they are."""
    from dataclasses import asdict

    import alloykit
    from alloykit.errors import listing

    found = alloykit.inspect(models, base=base, trust_pickle=trust_pickle)
    if as_json:
        print_json({**asdict(found), "combinable": found.combinable})
        return
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
    for title, lines in (("In the way", found.problems), ("Notes", found.notes)):
        if lines:
            print(f"{title}:\n{listing(lines)}\n")
    print(found.verdict)
