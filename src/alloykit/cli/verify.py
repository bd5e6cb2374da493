"""``alloykit verify OUT``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alloykit.cli.console import Json, TrustPickle, print_json, print_table

if TYPE_CHECKING:
    from alloykit.api.verifying import Verification

NOT_AS_RECORDED = 4


def verify(
    merged: Annotated[Path, typer.Argument(help="A file, or folder of shards, that merge wrote.")],
    replay: Annotated[
        Path | None,
        typer.Option(help="Merge once more into this new file, and compare all of it."),
    ] = None,
    moved: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=PATH", help="Where an input is now, if it was moved; repeat."
        ),
    ] = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Check that a merged file is what it says it is: its inputs, and its values.

    Exit code 4 says that it is not.
    """
    inputs = moved_inputs(moved or [])
    from alloykit.api.verifying import verify as verified

    found = verified(merged, inputs=inputs, replay=replay, trust_pickle=trust_pickle)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)
    if not found.ok:
        raise typer.Exit(NOT_AS_RECORDED)


def moved_inputs(words: Sequence[str]) -> dict[str, str]:
    """Name -> path, from words such as math=/new/math.safetensors."""
    pairs = [word.partition("=") for word in words]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise typer.BadParameter(
                f"an input that was moved is given as NAME=PATH, such as base=/new/base.pt. "
                f"Got {name}{equals}{path}."
            )
    return {name: path for name, _, path in pairs}


def _show(found: Verification) -> None:
    rows = [
        (finding.what, "yes" if finding.ok else "NO", finding.detail) for finding in found.findings
    ]
    print_table(f"{found.path}: {found.record.get('method')}", ["", "as recorded", ""], rows)
    wrong = [finding.what for finding in found.findings if not finding.ok]
    if wrong:
        print(f"It is not what it says, or cannot be checked: {', '.join(wrong)}.")
    else:
        print("It is what it says.")


def _as_json(found: Verification) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "path": str(found.path),
        "ok": found.ok,
        "findings": [asdict(finding) for finding in found.findings],
        "record": dict(found.record),
    }
