"""The command line: one file a command, the same words as the Python verbs."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from alloykit.cli.aggregate import AggregateCommand, aggregate
from alloykit.cli.average import average
from alloykit.cli.compare import compare
from alloykit.cli.demo import demo
from alloykit.cli.diagnose import diagnose
from alloykit.cli.distill import distill
from alloykit.cli.federate import federate
from alloykit.cli.fuse import fuse
from alloykit.cli.inspect import inspect
from alloykit.cli.interpolate import interpolate
from alloykit.cli.merge import merge
from alloykit.cli.method_options import MethodCommand
from alloykit.cli.methods import methods
from alloykit.cli.stats import stats
from alloykit.cli.verify import verify
from alloykit.errors import AlloyError

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    name="alloykit",
    help="Combine trained PyTorch models, and measure which combination is worth shipping.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="--json prints machine-readable output, --debug shows tracebacks. "
    "Exit codes: 2 usage, 3 data, 4 checkpoint, 5 environment, 1 anything else.",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and stop.")
    ] = False,
) -> None:
    """Combine trained PyTorch models, and measure which combination is worth shipping."""
    if version:
        print(f"alloykit {metadata.version('alloykit')}")
        raise typer.Exit


COMMANDS = (
    inspect, merge, verify, stats, average, interpolate, diagnose, compare, fuse, distill,
    aggregate, federate, methods, demo,
)  # fmt: skip
WITH_OPTIONS_OF_METHODS = {merge: MethodCommand, aggregate: AggregateCommand}

for command in COMMANDS:
    app.command(cls=WITH_OPTIONS_OF_METHODS.get(command))(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Errors that alloykit raises on purpose end without a traceback.

    Args:
        arguments: What follows the program's name; by default this process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if arguments is None:
        # Leaving by an exception lets half-written files be removed; a plain kill does not.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app(given, prog_name="alloykit")
    except AlloyError as error:
        _fail(error, given, debug, error.exit_code)
    except KeyboardInterrupt:
        print("alloykit: interrupted; nothing half-written was left behind.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _fail(error, given, debug, 1)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"alloykit: {message}", file=sys.stderr)


def _fail(error: Exception, given: Sequence[str], debug: bool, code: int) -> None:
    if debug:
        raise error
    text = str(error)
    if not isinstance(error, AlloyError):
        text = f"{type(error).__name__}: {error}\nThis was not foreseen: --debug shows where."
    if "--json" in given:
        print(json.dumps({"error": type(error).__name__, "message": text, "exit_code": code}))
    print(f"alloykit: {text}", file=sys.stderr)
    sys.exit(code)
