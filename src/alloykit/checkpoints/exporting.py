"""A combined model in one file that runs without alloykit and without the members' source."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from alloykit.checkpoints.writing import atomic_write
from alloykit.errors import CheckpointError, DataError, UnsafeCheckpoint, listing

DESCRIPTION = "alloykit.json"
"""The name, inside the file, of what the model is made of."""


@runtime_checkable
class Combined(Protocol):
    """A module that holds members: an ensemble, or a fusion."""

    names: tuple[str, ...]
    members: nn.ModuleList

    def without_unused(self) -> nn.Module:
        """The same module without what it never runs, fit to be exported."""

    def description(self) -> Mapping[str, Any]:
        """What it is made of, as JSON values."""


def save_exported(
    model: nn.Module, path: str | Path, example_inputs: Any, *, overwrite: bool = False
) -> None:
    """Write a model as one program with ``torch.export``: an ensemble or fusion with its members.

    The file holds the parameters and the steps of the computation; whoever loads it, with
    ``load_exported`` or with ``torch.export.load(path).module()``, needs torch alone. Members of
    weight zero are left out. The first dimension of every input is the batch, and may have any
    size later; every other dimension is fixed to that of ``example_inputs``.

    Args:
        model: It is not changed; what it returns now, in eval mode, is what the file will return.
        path: By custom ending in ``.pt2``.
        example_inputs: One batch as the members take it: a tensor, a tuple of them, or a dict of
            keyword arguments.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: There is such a file and ``overwrite`` is False.
        CheckpointError: The model, or a member of it, cannot be exported; the text names it.
        DataError: ``example_inputs`` holds no examples.

    References:
        torch.export, "Ahead-of-time export". The batch dimension must not be specialised: a
        member that reshapes to a fixed batch size cannot be exported.
    """
    args, kwargs = _call(example_inputs)
    description = dict(model.description()) if isinstance(model, Combined) else {}
    # Not the caller's own: it may be in training mode, and is to stay there.
    model = model.without_unused() if isinstance(model, Combined) else copy.deepcopy(model)
    model.train(False)
    with torch.no_grad():
        model(*args, **kwargs)
    with atomic_write(path, overwrite=overwrite) as file, _quiet():
        program = _exported(model, args, kwargs)
        if isinstance(program, Exception):
            raise _explained(model, args, kwargs, program) from program
        _forget_origin(program)
        torch.export.save(
            program, file, extra_files={DESCRIPTION: json.dumps(description, sort_keys=True)}
        )


def load_exported(path: str | Path, *, trust_pickle: bool = False) -> nn.Module:
    """The module in a ``torch.export`` file, ready to be called as what was exported.

    What ``save_exported`` writes holds no pickles, and files with pickles are refused. The graph is
    read by torch all the same: load programs only from people that you would run a program of.

    Args:
        path: A file that ``save_exported`` or ``torch.export.save`` wrote, with this or an
            earlier version of torch.
        trust_pickle: Load files that hold pickles; torch then *runs* what they say.

    Raises:
        CheckpointError: There is no such file, or it is not an exported program.
        UnsafeCheckpoint: It holds pickles.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        raise CheckpointError(f"There is no file {source}.")
    try:
        with source.open("rb") as file, _quiet():
            if not trust_pickle:
                _refuse_pickles(file, source)
            return Exported(torch.export.load(file).module())
    except UnsafeCheckpoint:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read as an exported program: {_first_line(error)}. "
            "It must be a file of torch.export, read with the same or a later torch."
        ) from error


class Exported(nn.Module):
    """A program of ``torch.export`` as a module: it has one mode, the one it was exported in."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Exported:
        """Do nothing: dropout and BatchNorm are fixed in the program."""
        return self


def _refuse_pickles(file: BinaryIO, source: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist()}
        pickled = [n for n, size in entries.items() if "/sample_inputs/" in n and size > 0]
        if not any(name.endswith("/archive_format") for name in entries):
            pickled.append("everything: it is of the format before torch 2.8")
        for name in (n for n in entries if n.endswith("_config.json")):
            records = json.loads(archive.read(name))["config"]
            pickled += [key for key, record in records.items() if record.get("use_pickle", True)]
    file.seek(0)
    if pickled:
        raise UnsafeCheckpoint(
            f"{source.name} was not loaded: it holds pickles, and loading them can run code.\n"
            f"{listing(pickled)}\n"
            "Set example_inputs of the exported program to None before torch.export.save; or, if "
            "you trust whoever wrote it, pass --trust-pickle."
        )


def _call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, each tensor with at least two rows.

    A batch of one would be taken for a constant: torch.export treats sizes 0 and 1 as special.
    """
    if isinstance(inputs, Mapping):
        return (), {key: _two_rows(value) for key, value in inputs.items()}
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(_two_rows(value) for value in values), {}


def _two_rows(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0 or len(value) == 0:
        raise DataError(f"An example input of shape {list(value.shape)} holds no examples.")
    return value if len(value) > 1 else torch.cat([value, value])


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.export.ExportedProgram | Exception:
    batch = torch.export.Dim("batch")
    given = kwargs or {f"input_{place}": value for place, value in enumerate(args)}
    shapes = {name: {0: batch} if isinstance(v, Tensor) else None for name, v in given.items()}
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                _Named(model, shapes), args, kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        return error


class _Named(nn.Module):
    """The model with a signature of these names: ``dynamic_shapes`` does not go by **kwargs."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def _explained(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> CheckpointError:
    members = zip(model.names, model.members, strict=True) if isinstance(model, Combined) else ()
    tried = ((name, _exported(member, args, kwargs)) for name, member in members)
    lines = [
        f"{name}: {_first_line(problem)}"
        for name, problem in tried
        if isinstance(problem, Exception)
    ]
    return CheckpointError(
        "The model cannot be exported with a batch of any size.\n"
        f"{listing(lines or [_first_line(error)])}\n"
        "torch.export needs a forward without branches on the data and without a fixed batch "
        "size. Keep the model as Python code instead, with its state_dict()."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.partition("\n")[0]


def _forget_origin(program: torch.export.ExportedProgram) -> None:
    """Drop the example batch, and the stack traces, which quote source code and paths."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch.export says about its own insides; nothing of it is the user's to mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch(\..*)?$|copyreg$")
        yield
