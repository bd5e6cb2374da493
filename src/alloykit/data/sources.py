"""From the spec of a split in a study file to its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from alloykit.data.batches import as_tensor
from alloykit.data.csv_file import read_csv
from alloykit.data.examples import Examples, as_examples, from_arrays
from alloykit.data.idx_file import read_images_and_labels
from alloykit.data.image_folder import read_image_folder
from alloykit.data.importing import import_object
from alloykit.data.npz_split import read_npz
from alloykit.data.preparing import channels_first, preparation
from alloykit.data.split_spec import SplitSpec, as_slice, as_spec
from alloykit.errors import DataError
from alloykit.types import Split

Arrays = tuple[NDArray[Any], NDArray[Any], tuple[str, ...] | None]


def load_split(
    spec: SplitSpec | Mapping[str, Any],
    name: Split,
    folder: str | Path = ".",
    *,
    batch_size: int = 256,
) -> Examples:
    """The examples that a spec describes.

    Inputs become (x·scale - mean) / std, in float32 unless ``dtype`` says otherwise. Images of
    bytes (uint8 of three dimensions or more) get the scale 1/255 and the channel axis first;
    whole numbers stay as they are, since they may be token numbers. Nothing is unpickled.

    Args:
        spec: One source (npz, images, csv, folder or object) and what to do with its inputs, as
            in ``SplitSpec``.
        name: Which split it is.
        folder: What relative paths start from, and where imported modules are looked for.
        batch_size: Examples per batch, where the source does not say.

    Raises:
        DataError: The spec has mistakes (all listed), or a file cannot be used.
    """
    known = as_spec(spec, name)
    base = Path(folder)
    if known.source == "object":
        return _from_object(known, name, base, batch_size)
    inputs, targets, class_names = READERS[known.source](known, base)
    if known.rows is not None:
        part = _part(known.rows, len(inputs), name)
        inputs, targets = inputs[part], targets[part]
    held = as_tensor(channels_first(inputs, known.shape), f"inputs of {name}")
    return from_arrays(
        held,
        targets,
        name,
        batch_size=batch_size,
        prepare=preparation(held, known, name),
        class_names=class_names,
    )


def _npz(spec: SplitSpec, folder: Path) -> Arrays:
    inputs, targets = read_npz(folder / str(spec.npz), inputs=spec.inputs, targets=spec.targets)
    if inputs.dtype.kind not in "biuf":
        raise DataError(f"{spec.npz}: {spec.inputs!r} holds {inputs.dtype} values, not numbers.")
    if inputs.ndim == 0 or targets.ndim == 0:
        raise DataError(f"{spec.npz}: both arrays need the examples as first dimension.")
    return inputs.astype(inputs.dtype.newbyteorder("="), copy=False), targets, None


def _idx(spec: SplitSpec, folder: Path) -> Arrays:
    return (*read_images_and_labels(folder / str(spec.images), folder / str(spec.labels)), None)


def _csv(spec: SplitSpec, folder: Path) -> Arrays:
    table = read_csv(
        folder / str(spec.csv),
        target=spec.target,
        header=spec.header,
        delimiter=spec.delimiter,
        classes=spec.classes,
    )
    return table.inputs, table.targets, table.class_names


def _folder(spec: SplitSpec, folder: Path) -> Arrays:
    return read_image_folder(
        folder / str(spec.folder), size=spec.size, color=spec.color, classes=spec.classes
    )


READERS: Mapping[str, Callable[[SplitSpec, Path], Arrays]] = {
    "npz": _npz,
    "images": _idx,
    "csv": _csv,
    "folder": _folder,
}


def _from_object(spec: SplitSpec, name: Split, folder: Path, batch_size: int) -> Examples:
    path = str(spec.object)
    found = import_object(path, folder)
    if isinstance(found, type) or (callable(found) and not isinstance(found, Dataset | DataLoader)):
        found = found(**spec.arguments)
    elif spec.arguments:
        raise DataError(f"{path} is a {type(found).__name__}, which takes no arguments.")
    examples = as_examples(found, name, batch_size=batch_size)
    if spec.rows is None:
        return examples
    part = _part(spec.rows, len(examples), name)
    return examples.keep(range(*part.indices(len(examples))))


def _part(rows: str, count: int, name: str) -> slice:
    part = as_slice(rows)
    if not len(range(*part.indices(count))):
        raise DataError(f"{name}: rows {rows!r} selects none of the {count} examples.")
    return part
