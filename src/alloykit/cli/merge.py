"""``alloykit merge METHOD A B … -o OUT`` and ``alloykit merge RECIPE -o OUT``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alloykit.cli.console import Json, Overwrite, TrustPickle, bytes_bar, print_json, print_table
from alloykit.cli.method_options import TYPED, Typed, method_parameters

SHOWN_DIGEST = 19
RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
IN_THE_RECIPE = ("base", "weights", "stats")


def merge(
    context: typer.Context,
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD|RECIPE", help="A merge method, or a recipe (.yaml)."),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints to merge; a recipe names its own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write (.safetensors); with --max-shard-size, a folder."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The checkpoint that the models were fine-tuned from.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="N N ...", help="One number per model: 1 1 0.5, or 1,1,0.5."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse weights of an average that do not sum to one.")
    ] = False,
    compat: Annotated[
        str | None, typer.Option(help="mergekit: its formulas, where ours follow the paper.")
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(
            metavar="KIND FILE...",
            help="Statistics that the method needs (fisher, gram): one file per model, up to the "
            "next option.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Output dtype, such as bfloat16. Default: the models' own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of methods that draw random numbers. Default: 0.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Write a folder of shards of at most this size, such as 5GB.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the blocks in flight may take, such as 2GB.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Default: one a core, or one, as the method needs."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
    executor: Annotated[
        str, typer.Option(help="local, or ray: a Ray cluster that shares the files.")
    ] = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what a killed run left behind.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done to which tensor, and stop.")
    ] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Write OUT.manifest.json: what changed how much.")
    ] = False,
    digests: Annotated[
        str,
        typer.Option(help="Of the inputs, for the record: fingerprint, or sha256 of all."),
    ] = "fingerprint",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, and stop.")
    ] = False,
    overwrite: Overwrite = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Merge models into one, by any method or by a recipe in the form of mergekit's.

    The method or the recipe comes first. Each method adds its own options, such as
    --density: alloykit merge ties --help lists those of ties.
    """
    if schema:
        from alloykit.recipes.recipe import recipe_schema

        print_json(recipe_schema())
        return
    if method is None:
        raise typer.BadParameter("name a merge method or a recipe first. See alloykit methods.")
    typed: Typed = context.meta.get(TYPED, Typed())
    given = {"base": base, "weights": weights, "stats": typed.stats or None}
    notes: list[str] = []
    if is_recipe(method, models or []):
        arguments, notes = from_recipe(method, models or [], typed, given)
    else:
        arguments = from_options(method, models or [], typed, given)
    named = {"compat": compat, "dtype": dtype, "seed": seed}
    arguments |= {key: value for key, value in named.items() if value is not None}
    arguments |= {"strict": strict, "trust_pickle": trust_pickle}
    for note in notes:
        print(f"alloykit: {note}", file=sys.stderr)
    if dry_run:
        from alloykit.cli.plan_table import show_plan

        show_plan(arguments, memory, threads, device, as_json=as_json)
        return
    if output is None:
        raise typer.BadParameter("say where the result goes: -o OUT.safetensors.")
    import alloykit

    with bytes_bar(quiet=as_json) as tell:
        path = alloykit.merge(
            **arguments, output=output, max_shard_size=max_shard_size, memory=memory,
            threads=threads, device=device, executor=executor, resume=resume, manifest=manifest,
            digests=digests, overwrite=overwrite, progress=tell,
        )  # fmt: skip
    _show_result(path, notes, as_json=as_json)


def is_recipe(first: str, models: Sequence[str]) -> bool:
    """Whether the first word names a recipe: by its ending, or as a file that stands alone."""
    return first.lower().endswith(RECIPE_SUFFIXES) or (not models and Path(first).is_file())


def from_recipe(
    path: str, models: Sequence[str], typed: Typed, given: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of ``alloykit.merge`` from a recipe, and what it says without effect."""
    twice = [f"--{name}" for name in IN_THE_RECIPE if given[name] is not None]
    twice += [option for option, _ in typed.options] + list(models)
    if twice:
        raise typer.BadParameter(
            f"{', '.join(twice)}: the recipe {path} says what is merged, and how. Write it there."
        )
    from alloykit.recipes.reading import read_recipe

    recipe = read_recipe(path)
    return recipe.arguments(), recipe.notes()


def from_options(
    method: str, models: Sequence[str], typed: Typed, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of ``alloykit.merge`` from what was typed."""
    from alloykit.errors import InvalidParameter, MissingInput
    from alloykit.registry import merge_methods

    entry = merge_methods.entry(method)
    arguments: dict[str, Any] = {"method": method, "models": list(models)}
    arguments["parameters"] = method_parameters(entry, typed.options, len(models))
    if not models:
        raise MissingInput(f"{method} was given no models to merge.{_swallowed(typed)}")
    if given["base"] is not None:
        if "base" not in entry.contract["needs"] | entry.contract["optional"]:
            raise InvalidParameter(
                f"{method} takes no base. Leave out --base, or give {given['base']} as one of the "
                "models."
            )
        arguments["base"] = given["base"]
    if given["weights"] is not None:
        arguments["weights"] = weights_of(given["weights"])
    if given["stats"] is not None:
        arguments["stats"] = checked_stats(given["stats"], method, len(models))
    return arguments


def weights_of(text: str) -> list[float]:
    """Weights from one word with commas.

    Raises:
        InvalidWeights: Some are no numbers.
    """
    from alloykit.errors import InvalidWeights, listing
    from alloykit.recipes.strict_yaml import plain_value
    from alloykit.recipes.values import number_mistake

    values = [plain_value(part.strip().removeprefix("+")) for part in text.split(",")]
    said = [(number, number_mistake(value)) for number, value in enumerate(values, start=1)]
    wrong = [f"weight {number} {mistake}" for number, mistake in said if mistake]
    if wrong:
        raise InvalidWeights(
            f"These weights cannot be used:\n{listing(wrong)}\n"
            "Give one number per model: --weights 1 1 0.5. (A model whose path is a number is "
            "written ./7.)"
        )
    return [float(value) for value in values]


def checked_stats(stats: dict[str, list[str]], method: str, models: int) -> dict[str, list[str]]:
    """The statistics as typed, if there is one file for each model."""
    from alloykit.errors import MissingInput

    for kind, files in stats.items():
        if len(files) != models:
            raise MissingInput(
                f"--stats {kind} names {len(files)} files for {models} models of {method}. Give "
                "one per model, in their order; they end at the next option, so name the models "
                "first."
            )
    return stats


def _swallowed(typed: Typed) -> str:
    """A hint where the models may have been taken for something else."""
    if typed.stats:
        return " --stats takes every word up to the next option: name the models before it."
    if typed.options:
        options = ", ".join(option for option, _ in typed.options)
        return f" Name them before the options ({options})."
    return " Name them: alloykit merge METHOD A.safetensors B.safetensors -o OUT.safetensors."


def _show_result(path: Path, notes: Sequence[str], *, as_json: bool) -> None:
    from alloykit.checkpoints.opening import open_checkpoint
    from alloykit.cli.provenance import recorded

    checkpoint = open_checkpoint(path)
    record = recorded(checkpoint)
    asked = json.loads(checkpoint.metadata.get("recipe", "{}")).get("weights") or []
    if as_json:
        print_json({"output": str(path), **record, "notes": list(notes)})
        return
    weights = record.get("weights") or {}
    if any(isinstance(weight, dict) for weight in asked):
        weights = dict.fromkeys(weights, "by tensor")
    rows = [
        (name, weights.get(name, "–"), f"{digest[:SHOWN_DIGEST]}…")
        for name, digest in record.get("inputs", {}).items()
    ]
    print_table(f"Wrote {path}: {record.get('method')}", ["model", "weight", "digest"], rows)
