"""``alloykit average A B … -o OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alloykit.cli.console import Json, Overwrite, TrustPickle, print_json, print_table, progress_bar

SHOWN_DIGEST = 19


def average(
    models: Annotated[
        list[str], typer.Argument(help="Checkpoints: .safetensors, .pt, .npz, folders of shards.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    weights: Annotated[
        str | None, typer.Option(help="One number per model, such as 2,1,1. Default: uniform.")
    ] = None,
    recency: Annotated[
        float | None,
        typer.Option(help="Weigh by recency, oldest first: each DECAY times the next newer one."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse weights that do not sum to one.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Output dtype, such as bfloat16. Default: the models' own.")
    ] = None,
    overwrite: Overwrite = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Average checkpoints of one run, or fine-tunes of one base, into one file."""
    given = None if weights is None else _numbers(weights)
    chosen = None if dtype is None else _dtype(dtype)
    import alloykit
    from alloykit.checkpoints.opening import open_checkpoint
    from alloykit.cli.provenance import recorded

    with progress_bar(quiet=as_json) as tell:
        path = alloykit.average(
            models,
            given,
            recency=recency,
            strict=strict,
            dtype=chosen,
            output=output,
            overwrite=overwrite,
            trust_pickle=trust_pickle,
            progress=tell,
        )
    record = recorded(open_checkpoint(path))
    if as_json:
        print_json({"output": str(path), **record})
        return
    rows = [
        (name, record["weights"].get(name, 0.0), f"{digest[:SHOWN_DIGEST]}…")
        for name, digest in record["inputs"].items()
    ]
    print_table(f"Wrote {path}", ["model", "weight", "digest"], rows)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"weights are numbers with commas between them, such as 2,1,1. Got {text!r}."
        ) from None


def _dtype(name: str) -> object:
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(f"there is no dtype {name!r}. Common: float32, bfloat16, float16.")
    return dtype
