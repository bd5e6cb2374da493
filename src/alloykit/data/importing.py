"""Objects by import path: what ``package.module:name`` in a study file stands for."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from alloykit.errors import DataError, did_you_mean


def import_object(path: str, folder: str | Path | None = None) -> Any:
    """The object at ``package.module:name``; importing runs the module's code.

    Args:
        path: Module, a colon, and a name in it, which may have dots ("data:Sets.train").
        folder: Searched for the module before everything else, as the study file's folder is.

    Raises:
        DataError: The path is malformed, or there is no such module or name.

    Example:
        >>> import_object("math:pi")
        3.141592653589793
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise DataError(f"{path!r} is not an import path. Write package.module:name.")
    with _searched(folder):
        module = _module(module_name, path, folder)
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError as error:
        known = [known for known in vars(module) if not known.startswith("_")]
        raise DataError(
            f"{path}: the module {module_name} has no {name!r}.{did_you_mean(name, known)} "
            f"It was read from {getattr(module, '__file__', None) or 'Python itself'}."
        ) from error


def _module(name: str, path: str, folder: str | Path | None) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            raise DataError(
                f"{path}: importing {name} needs the module {error.name!r}, which is not "
                "installed. Install it first."
            ) from error
        where = f" in {folder} or" if folder is not None else ""
        raise DataError(
            f"{path}: there is no module {error.name!r}{where} among the installed packages. "
            "Check the spelling, or start where the module's file is."
        ) from error


@contextlib.contextmanager
def _searched(folder: str | Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    entry = str(Path(folder).resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
