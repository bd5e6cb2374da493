"""What commands print: JSON for scripts, tables for people, a progress bar meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

PIPED_WIDTH = 110

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Open pickles that name unknown classes. Nothing in them is run."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def console() -> Console:
    """Standard output; where nobody is watching, wide enough that names are not folded."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table; columns of numbers are set to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(column), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    console().print(table)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, as a callback (what comes next, done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with _bar(columns, quiet) as tell:
        yield tell


@contextmanager
def bytes_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """As ``progress_bar``, for bytes: with how many a second, and the time that remains."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with _bar(columns, quiet) as tell:
        yield tell


@contextmanager
def _bar(
    columns: Sequence[ProgressColumn], quiet: bool
) -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    standard_error = Console(file=sys.stderr)
    hidden = quiet or not standard_error.is_terminal
    with Progress(*columns, console=standard_error, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell


def plain(mapping: Mapping[str, object], keys: Sequence[str]) -> list[object]:
    """The values of these keys, lists joined by commas and empty ones as a dash."""
    values = (mapping[key] for key in keys)
    return [", ".join(map(str, v)) or "–" if isinstance(v, list | tuple) else v for v in values]
