"""Inputs and targets in one .npz file of NumPy arrays."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alloykit.errors import DataError, did_you_mean


def read_npz(
    path: str | Path, *, inputs: str = "x", targets: str = "y"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two arrays; nothing is unpickled.

    Targets that are one column of whole numbers, [example, 1], become [example].

    Args:
        path: A file of ``numpy.savez`` or ``numpy.savez_compressed``.
        inputs: Name of the array of inputs.
        targets: Name of the array of targets.

    Raises:
        DataError: No such file or array, a damaged file, or one with Python objects.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            found, wanted = _arrays(stream, (inputs, targets), file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file.") from error
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(_why(file, error)) from error
    if wanted.ndim == 2 and wanted.shape[1] == 1 and wanted.dtype.kind in "iub":
        wanted = wanted[:, 0]
    return found, wanted


def _arrays(stream: IO[bytes], keys: tuple[str, str], file: Path) -> list[NDArray[Any]]:
    arrays = np.load(stream, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise DataError(f"{file} holds one array and no names. Save it with numpy.savez.")
    with arrays:
        return [_array(arrays, key, file) for key in keys]


def _array(arrays: Any, key: str, file: Path) -> NDArray[Any]:
    names = list(arrays)
    if key not in names:
        raise DataError(
            f"{file} has no array {key!r}.{did_you_mean(key, names)} It has: "
            f"{', '.join(names) or 'none'}. Name them with 'inputs' and 'targets'."
        )
    array: NDArray[Any] = arrays[key]
    return array


def _why(file: Path, error: Exception) -> str:
    if "pickle" in str(error) or isinstance(error, pickle.UnpicklingError):
        return (
            f"{file} was not loaded: it is no .npz file of numbers, or it holds Python objects, "
            "and loading them can run code. Save plain arrays with numpy.savez."
        )
    return f"{file} is damaged or no .npz file ({error}). Save or fetch it again."
