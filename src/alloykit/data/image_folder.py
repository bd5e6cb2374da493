"""Images in a folder with one sub-folder per class, read with Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alloykit.errors import DataError, listing

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def read_image_folder(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    color: bool = True,
    classes: Sequence[str] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Images as bytes [image, channel, height, width], class numbers [image], class names.

    Classes are the sub-folders in sorted order, or ``classes``; images are sorted by path inside
    them. All images are decoded and held in memory as bytes.

    Args:
        path: The folder.
        size: Height and width in pixels that all images are resized to (bilinear); None where
            they already agree.
        color: Three channels, or one of grey.
        classes: Names of the sub-folders in the order of the class numbers.

    Raises:
        DataError: No such folder, no images, unreadable images, or images of different sizes.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    names = _class_names(folder, classes)
    files = [(file, i) for i, name in enumerate(names) for file in _files(folder / name)]
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}).")
    images, wrong = [], []
    for file, _ in files:
        try:
            images.append(_image(file, size, color))
        except _UnreadableError as error:
            wrong.append(f"{file.relative_to(folder)}: {error}")
    if wrong:
        raise DataError(
            f"{folder}: {len(wrong)} of {len(files)} images cannot be read:\n{listing(wrong)}\n"
            "Remove or replace them."
        )
    _check_sizes(folder, images, files)
    return np.stack(images), np.array([i for _, i in files], dtype=np.int64), names


class _UnreadableError(Exception):
    pass


def _class_names(folder: Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} has no sub-folders: it takes one folder of images per class.")
    if classes is None:
        return tuple(found)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise DataError(
            f"{folder} has sub-folders that are not among the classes:\n{listing(unknown)}\n"
            f"The classes: {', '.join(classes)}."
        )
    return tuple(classes)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() in SUFFIXES)


def _image(file: Path, size: tuple[int, int] | None, color: bool) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                image = opened.convert("RGB" if color else "L")
    except UnidentifiedImageError:
        raise _UnreadableError("not an image that Pillow knows") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise _UnreadableError(str(error)) from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels.transpose(2, 0, 1) if color else pixels[None]


def _check_sizes(folder: Path, images: list[Any], files: list[tuple[Path, int]]) -> None:
    first = images[0].shape
    lines = [
        f"{file.relative_to(folder)}: {image.shape[1]} x {image.shape[2]}"
        for image, (file, _) in zip(images, files, strict=True)
        if image.shape != first
    ]
    if lines:
        raise DataError(
            f"{folder}: {len(lines)} of {len(images)} images are not {first[1]} x {first[2]} like "
            f"the first one:\n{listing(lines)}\nGive size: [height, width] to resize them."
        )
