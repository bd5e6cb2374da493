"""``alloykit aggregate A B C --num-examples 100 80 20 -o OUT``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alloykit.cli.console import Json, Overwrite, TrustPickle, print_json, print_table
from alloykit.cli.method_options import TYPED, MethodCommand, Typed, method_parameters

if TYPE_CHECKING:
    from alloykit.api.aggregating import Aggregation
    from alloykit.registry import Entry


class AggregateCommand(MethodCommand):
    """A command whose further options are the parameters of the aggregator that --method names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find the aggregator first: its options may stand before its name."""
        ctx.meta["alloykit.aggregator"] = _method_in(args)
        self.entry_of = lambda declared: entry_named(_method_in(args))  # type: ignore[method-assign]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's help, and the options of the aggregator that was typed."""
        super(MethodCommand, self).format_help(ctx, formatter)
        entry = entry_named(ctx.meta.get("alloykit.aggregator", "fedavg"))
        if entry is not None:
            from alloykit.cli.method_help import entry_help

            formatter.write(entry_help(entry, f"docs/methods.md#aggregator-{entry.name}"))


def entry_named(method: str) -> Entry | None:
    """The aggregator of that name, or the merge method."""
    from alloykit.registry import aggregators, merge_methods

    registry = next((r for r in (aggregators, merge_methods) if method in r.names()), None)
    return None if registry is None else registry.entry(method)


def aggregate(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help="One checkpoint per client.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    base: Annotated[
        str | None, typer.Option(help="The server's model, which the clients started from.")
    ] = None,
    num_examples: Annotated[
        str | None,
        typer.Option(metavar="N N ...", help="Examples of each client: 100 80 20, or 100,80,20."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="An aggregator, or any merge method; see alloykit methods.")
    ] = "fedavg",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Names (globs) that stay as the server has them; may be repeated."),
    ] = None,
    min_clients: Annotated[
        int, typer.Option(help="Fewer clients that count are an error, and nothing is written.")
    ] = 1,
    max_norm: Annotated[
        float | None, typer.Option(help="Leave out clients that moved further (2-norm).")
    ] = None,
    max_examples: Annotated[
        float | None, typer.Option(help="Leave out clients that claim more examples.")
    ] = None,
    on_bad: Annotated[
        str, typer.Option(help="leave_out, or error: what an update that cannot be used does.")
    ] = "leave_out",
    state: Annotated[
        Path | None,
        typer.Option(
            help="File with what the server keeps between rounds (fedadam, ...): read if it is "
            "there, and written anew."
        ),
    ] = None,
    overwrite: Overwrite = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Combine models that clients trained on data of their own into one, in one round.

    Each aggregator adds its own options: alloykit aggregate --method krum --help lists those of
    krum. Updates that cannot be used are left out, and the table says why.
    """
    typed: Typed = context.meta.get(TYPED, Typed())
    entry = entry_named(method)
    parameters = {} if entry is None else method_parameters(entry, typed.options, len(models))
    import alloykit
    from alloykit.cli.merge import weights_of
    from alloykit.errors import InvalidParameter
    from alloykit.federation.server_state import load_state, save_state

    if state is not None and state.expanduser().resolve() == output.expanduser().resolve():
        raise InvalidParameter(f"--state and --output are both {output}. Give two files.")
    kept = load_state(state) if state is not None and state.exists() else None
    found = alloykit.aggregate(
        base,
        models,
        method,
        num_examples=None if num_examples is None else weights_of(num_examples),
        parameters=parameters,
        state=kept,
        checks={
            "min_clients": min_clients,
            "max_norm": max_norm,
            "max_examples": max_examples,
            "on_bad": on_bad,
        },
        keep=keep or (),
        output=output,
        overwrite=overwrite,
        trust_pickle=trust_pickle,
    )
    if state is not None:
        save_state(found.state, state)
    if as_json:
        print_json({"output": str(found.model), **found.record.to_json()})
        return
    _show(found)


def _show(found: Aggregation) -> None:
    record = found.record
    rows: list[Sequence[Any]] = [
        (
            each.client,
            "–" if each.num_examples is None else f"{each.num_examples:g}",
            "–" if each.coefficient is None else f"{each.coefficient:.4g}",
            "–" if each.norm is None else f"{each.norm:.4g}",
            "",
        )
        for each in record.counted
    ]
    rows += [(each.client, "–", "0", "–", each.reason) for each in record.left_out]
    columns = ["client", "examples", "weight", "moved by", "left out because"]
    shown = columns if record.left_out else columns[:-1]
    print_table(f"Wrote {found.model}: {record.method}", shown, [row[: len(shown)] for row in rows])


def _method_in(arguments: Sequence[str]) -> str:
    """What ``--method`` names among the words typed; the default where it is not there."""
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == "--method":
            return value if equals else next(iter(arguments[place + 1 :]), "")
    return "fedavg"
