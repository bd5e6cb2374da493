"""``alloykit interpolate BASE MODEL -o OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alloykit.cli.console import Json, Overwrite, TrustPickle, print_json


def interpolate(
    base: Annotated[str, typer.Argument(help="Where alpha is 0: what MODEL was fine-tuned from.")],
    model: Annotated[str, typer.Argument(help="Where alpha is 1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    alpha: Annotated[float, typer.Option(help="Place on the line from BASE to MODEL.")] = 0.5,
    overwrite: Overwrite = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Walk the straight line from a base to a model fine-tuned from it (WiSE-FT)."""
    import alloykit

    path = alloykit.interpolate(
        base, model, alpha, output=output, overwrite=overwrite, trust_pickle=trust_pickle
    )
    if as_json:
        print_json({"output": str(path), "base": base, "model": model, "alpha": alpha})
    else:
        print(f"Wrote {path}: {base} + {alpha:g} · ({model} − {base})")
