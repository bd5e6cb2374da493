"""Arrays in idx files, the format of MNIST: big-endian, with or without gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alloykit.errors import DataError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path) -> NDArray[Any]:
    """The array in an idx file, in native byte order.

    The file must hold exactly the number of bytes that its header announces.

    Args:
        path: An idx file; gzip is recognised by its first bytes, not by its name.

    Raises:
        DataError: There is no such file, it is no idx file, or it is truncated or too long.
    """
    file = Path(path)
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if not packed:
                return _read(raw, file)
            with gzip.open(raw) as unpacked:
                return _read(unpacked, file)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{file} is not a whole gzip file ({error}). It was probably cut short while it was "
            "downloaded or copied: fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.") from error


def _read(stream: IO[bytes], file: Path) -> NDArray[Any]:
    dtype, shape = _header(stream, file)
    wanted = math.prod(shape) * dtype.itemsize
    # One byte more than announced tells a file that is too long, without unpacking all of it.
    data = stream.read(wanted + 1)
    if len(data) != wanted:
        found = f"{len(data)} bytes" if len(data) < wanted else "more"
        raise DataError(
            f"{file} is damaged: its header announces {list(shape)} {dtype.name} values, which are "
            f"{wanted} bytes, and it holds {found}. Fetch it again."
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _header(stream: IO[bytes], file: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not magic[3]:
        raise DataError(
            f"{file} is not an idx file: it begins with {magic.hex(' ') or 'nothing'}, and an idx "
            "file with 00 00, a type (08 for bytes) and the number of dimensions."
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise DataError(f"{file} is damaged: it ends within its header. Fetch it again.")
    return np.dtype(DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)


def read_images_and_labels(
    images: str | Path, labels: str | Path
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images [image, ...] and their labels [image] of two idx files; DataError unless they fit."""
    pictures, numbers = read_idx(images), read_idx(labels)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{labels} holds {numbers.dtype.name} values of the shape {list(numbers.shape)}, and "
            "labels are one whole number per image. Were images and labels exchanged?"
        )
    if len(pictures) != len(numbers):
        raise DataError(
            f"{images} holds {len(pictures)} images and {labels} {len(numbers)} labels. "
            "Take both files from the same set."
        )
    return pictures, numbers
