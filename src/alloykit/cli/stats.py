"""``alloykit stats fisher|gram A B … --architecture M:F --data SPEC … -o OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alloykit.cli.console import Json, Overwrite, TrustPickle, print_json, progress_bar

TASKS = ("classification", "regression", "tokens")
ENDINGS = {".npz": "npz", ".csv": "csv"}


def stats(
    kind: Annotated[
        str, typer.Argument(help="fisher (for the method fisher) or gram (for regmean).")
    ],
    models: Annotated[list[str], typer.Argument(help="Checkpoints, one or more.")],
    architecture: Annotated[
        str, typer.Option(help="What builds the models: package.module:callable.")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="What a model is for: file.npz, table.csv, a folder of images, "
            "package.module:object, spec.yaml, or a split as in a study: '{npz: a.npz}'. "
            "Once for all models, or once for each, in their order."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .safetensors file; a folder for several models."),
    ],
    arguments: Annotated[
        str, typer.Option(help="Arguments of the architecture, such as '{width: 64}'.")
    ] = "{}",
    examples: Annotated[
        int | None, typer.Option(help="Use that many, evenly spaced. Default: all.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="How outputs are read: classification, regression or tokens.")
    ] = "classification",
    labels: Annotated[
        str | None, typer.Option(help="Of fisher: exact or sampled. Default: by the task.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampled labels.")] = 0,
    through_merged: Annotated[
        bool,
        typer.Option("--through-merged", help="Of gram: behind the merged layers (RegMean++)."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.")] = 256,
    overwrite: Overwrite = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Collect what a merge needs to know of models on data: Fisher diagonals, Gram matrices."""
    import alloykit
    from alloykit.comparison.preparing import built_module
    from alloykit.data.sources import load_split

    if task not in TASKS:
        raise typer.BadParameter(f"the task is one of {', '.join(TASKS)}. Got {task!r}.")
    here = Path.cwd()
    module = built_module(architecture, _mapping(arguments, "--arguments"), here, trust_pickle)
    splits = []
    for text in data:
        spec, folder = _spec(text)
        splits.append(load_split(spec, "train", folder, batch_size=batch_size))
    if len(splits) == 1:
        splits *= len(models)
    several = len(models) > 1 or through_merged
    with progress_bar(quiet=as_json) as tell:
        found = alloykit.stats(
            models if several else models[0],
            splits if several else splits[0],
            kind,  # type: ignore[arg-type]
            module=module,
            examples=examples,
            task=task,  # type: ignore[arg-type]
            labels=labels,  # type: ignore[arg-type]
            seed=seed,
            through_merged=through_merged,
            output=output,
            overwrite=overwrite,
            trust_pickle=trust_pickle,
            progress=tell,
        )
    files = [str(file) for file in (found if several else [found])]
    if as_json:
        print_json({"kind": kind, "outputs": files})
        return
    method = {"fisher": "fisher", "gram": "regmean"}[kind]
    merging = f"alloykit merge {method} MODELS --stats {kind} {' '.join(files)} -o OUT"
    print(f"Wrote {', '.join(files)}.\nMerge with them: {merging}")


def _spec(text: str) -> tuple[Any, Path]:
    """A split's spec from what the command line says, and where its relative paths start."""
    path, here = Path(text).expanduser(), Path.cwd()
    if text.lstrip().startswith("{"):
        return _mapping(text, "--data"), here
    if path.suffix in (".yaml", ".yml"):
        try:
            return _mapping(path.read_text(encoding="utf-8"), str(path)), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{path} cannot be read: {error}.") from None
    if path.suffix in ENDINGS:
        return {ENDINGS[path.suffix]: text}, here
    return ({"folder": text} if path.is_dir() or ":" not in text else {"object": text}), here


def _mapping(text: str, what: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{what} is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{what} must be a mapping such as {{npz: a.npz}}. Got {text!r}.")
    return found
