"""The safetensors format, read strictly: a header that is wrong in any way is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from alloykit.checkpoints.element_types import PACKED, SAFETENSORS
from alloykit.checkpoints.extents import MOST_DIMENSIONS, naturals
from alloykit.checkpoints.file_checkpoint import FileCheckpoint, FileRegion, Record
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.strict_json import encodable, parse
from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec

LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the format's own reader."""

LONGEST_NAME = 4096
TIED = "alloykit.tied"
"""Metadata key of the names that stand for stored tensors."""

FIELDS = frozenset({"dtype", "shape", "data_offsets"})


def open_safetensors(file: SourceFile, id: str) -> FileCheckpoint:
    """Read the header of a .safetensors file; tensor data stays on disk until asked for.

    Beyond the format's own reader this refuses duplicate keys, unknown fields and text before the
    header. Names that the metadata declares tied to a stored tensor (as ``save_model`` of the
    safetensors library writes them) are restored.

    Args:
        file: The open file.
        id: What the checkpoint is called.

    Raises:
        CheckpointError: The header is wrong, with all that is wrong in it, or there is no tensor.

    References:
        The safetensors format, https://github.com/huggingface/safetensors#format
    """
    header, data_start = _header(file)
    metadata = _metadata(file, header.pop("__metadata__", {}))
    _check_records(file, header)
    if not header:
        file.fail("holds no tensors.")
    _check_layout(file, header, file.size - data_start)
    region = FileRegion(file, data_start, file.size - data_start)
    records = {name: _record(name, value, region) for name, value in header.items()}
    tied = tied_names(metadata, records)
    records |= {alias: records[name] for alias, name in tied.items()}
    notes = tuple(f"{shown(alias)} is tied to {shown(name)}" for alias, name in tied.items())
    return FileCheckpoint(id, records, metadata, notes)


def tied_names(metadata: Mapping[str, str], names: Mapping[str, Any]) -> dict[str, str]:
    """Names that the metadata ties to stored tensors.

    Either as the writer here says it, one JSON object under "alloykit.tied"; or as save_model of
    the safetensors library does, one key a name. Of the latter only names with a dot count, since
    any remark in the metadata could look like that.

    Example:
        >>> tied_names({"head.weight": "embed.weight", "format": "pt"}, {"embed.weight": ...})
        {'head.weight': 'embed.weight'}
    """
    pairs = {k: v for k, v in metadata.items() if "." in k and "." in v}
    try:
        stated = parse(metadata.get(TIED, "{}").encode("utf-8", "replace"))
    except ValueError:
        stated = {}
    if isinstance(stated, dict):
        pairs |= {k: v for k, v in stated.items() if isinstance(v, str)}
    return {k: v for k, v in sorted(pairs.items()) if v in names and k not in names}


def _header(file: SourceFile) -> tuple[dict[str, Any], int]:
    if file.size < 8:
        _refuse(file, f"it has {file.size} bytes, and the length of the header takes 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > LONGEST_HEADER:
        _refuse(file, f"its header claims {length} bytes, and the limit is {LONGEST_HEADER}")
    if 8 + length > file.size:
        _refuse(file, f"its header claims {length} bytes, and the file has {file.size}: truncated?")
    text = file.read(8, 8 + length)
    if not text.startswith(b"{"):
        _refuse(file, "its header does not begin with '{'")
    try:
        header = parse(text)
    except ValueError as error:
        _refuse(file, f"its header is not valid JSON: {error}")
    return header, 8 + length


def _metadata(file: SourceFile, metadata: Any) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(file, "its __metadata__ must map text to text")
    wrong = [shown(k) for k, v in metadata.items() if not encodable(k) or not encodable(v)]
    if wrong:
        _refuse(file, "its __metadata__ holds what is not valid Unicode (a lone surrogate)", wrong)
    return dict(metadata)


def _record(name: str, value: Mapping[str, Any], region: FileRegion) -> Record:
    start, stop = value["data_offsets"]
    place = f"byte {start}" if stop > start else f"empty {name}"
    spec = TensorSpec(tuple(value["shape"]), SAFETENSORS[value["dtype"]], place)
    return Record(spec, region, start)


def _check_records(file: SourceFile, header: Mapping[str, Any]) -> None:
    wrong = [
        f"{shown(name)}: {complaint}"
        for name, value in header.items()
        if (complaint := _complaint(name, value))
    ]
    if wrong:
        _refuse(file, f"{counted(len(wrong), 'record')} in its header cannot be used", wrong)


def _complaint(name: str, value: Any) -> str | None:
    """What is wrong with one record of the header taken by itself."""
    if not encodable(name):
        return "the name is not valid Unicode (a lone surrogate)"
    if len(name) > LONGEST_NAME:
        return f"the name has {len(name)} characters, and the limit is {LONGEST_NAME}"
    if not isinstance(value, dict):
        return "the record is not an object"
    if value.keys() != FIELDS:
        odd = sorted(FIELDS ^ value.keys())
        kind = "unknown" if odd[0] in value else "missing"
        return f"{kind} field {shown(odd[0])}"
    return _dtype_complaint(value["dtype"]) or _extent_complaint(value)


def _dtype_complaint(dtype: Any) -> str | None:
    if isinstance(dtype, str) and dtype in SAFETENSORS:
        return None
    if isinstance(dtype, str) and dtype in PACKED:
        return f"its dtype {dtype} packs elements into less than a byte; store it unpacked"
    return f"its dtype {shown(dtype)} is unknown"


def _extent_complaint(value: Mapping[str, Any]) -> str | None:
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not naturals(shape):
        return f"its shape {shown(shape)} is not a list of at most {MOST_DIMENSIONS} sizes"
    if not _two_ascending(offsets):
        return f"its data_offsets {shown(offsets)} are not two ascending positions"
    needed = math.prod(shape) * SAFETENSORS[value["dtype"]].itemsize
    given = offsets[1] - offsets[0]
    if needed != given:
        what = f"{value['dtype']} {shown(shape)} takes {needed} bytes"
        return f"{what}, and its data_offsets span {given}"
    return None


def _two_ascending(offsets: Any) -> bool:
    found = isinstance(offsets, list) and len(offsets) == 2 and naturals(offsets)
    return found and offsets[0] <= offsets[1]


def _check_layout(file: SourceFile, header: Mapping[str, Any], size: int) -> None:
    wrong = []
    end = 0
    spans = sorted((*value["data_offsets"], name) for name, value in header.items())
    for start, stop, name in spans:
        if stop > size:
            wrong.append(f"{shown(name)}: ends at byte {stop} of {size} (truncated?)")
        elif start != end:
            what = "overlaps the tensor before it" if start < end else "leaves a hole"
            wrong.append(f"{shown(name)}: starts at byte {start}, not {end}: it {what}")
        end = max(end, stop)
    if not wrong and end != size:
        wrong.append(f"{size - end} bytes follow the last tensor")
    if wrong:
        _refuse(file, "its tensors do not fill the file one after the other", wrong)


def _refuse(file: SourceFile, why: str, lines: list[str] | None = None) -> NoReturn:
    text = f"{file.name} is not a valid safetensors file: {why}"
    end = f":\n{listing(lines)}\n" if lines else ". "
    raise CheckpointError(f"{text}{end}Copy or download it again, or write it anew.")
