"""Files of torch.save, zip form and older, read by offset without running their pickle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from alloykit.checkpoints.element_types import SUPPORTED
from alloykit.checkpoints.file_checkpoint import FileCheckpoint, FileRegion, Record, Region
from alloykit.checkpoints.pickle_globals import (
    MalformedPickleError,
    StoredElements,
    TensorView,
)
from alloykit.checkpoints.pickle_records import Unpickled, unpickle
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.training_checkpoint import WHOLE_MODULE, find_weights, holds_module
from alloykit.checkpoints.wording import counted, shown
from alloykit.checkpoints.zip_container import LOCAL_HEADER, Entry, open_zip
from alloykit.errors import LISTED, CheckpointError, UnsafeCheckpoint, listing
from alloykit.types import TensorSpec

LARGEST_PICKLE = 64 << 20
"""Bytes of the index; 300,000 tensors take about as much."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class Storage:
    """The bytes of a storage.

    Attributes:
        region: Where they are.
        offset: The first one within the region.
        nbytes: Their number.
    """

    region: Region
    offset: int
    nbytes: int


Parts: TypeAlias = tuple[Unpickled, Callable[[StoredElements], Storage]]
"""What a file's pickle holds, and what finds the bytes of its storages."""


def open_torch(
    file: SourceFile, id: str, *, key: str | None = None, trust_pickle: bool = False
) -> FileCheckpoint:
    """Open a file of torch.save; nothing in it is ever imported, called or executed.

    The pickle inside is read by an interpreter that builds records. Names that are not known to
    be harmless make it refuse the file; with ``trust_pickle`` they become inert placeholders.

    Args:
        file: The open file.
        id: What the checkpoint is called.
        key: Entry of the root that holds the weights; looked for when None.
        trust_pickle: Accept unknown names as placeholders.

    Raises:
        UnsafeCheckpoint: It mentions names that are not known to be harmless.
        CheckpointError: It is damaged, is a TorchScript archive, or holds no state dict.
    """
    pickled, storages = _parts(file, trust_pickle)
    weights = find_weights(file.name, pickled.root, key)
    wrong = []
    records = {}
    for name, view in weights.tensors.items():
        try:
            records[name] = _record(name, view, storages)
        except MalformedPickleError as error:
            wrong.append(f"{shown(name)}: {error}")
    if wrong:
        _refuse(file, f"{counted(len(wrong), 'tensor')} cannot be read:\n{listing(wrong)}\n")
    return FileCheckpoint(id, records, {}, weights.notes)


def open_tensor(file: SourceFile, *, trust_pickle: bool = False) -> Record:
    """Open a file of torch.save that holds one tensor and nothing else.

    Args:
        file: The open file, or a part of one.
        trust_pickle: Accept unknown names as placeholders.

    Raises:
        UnsafeCheckpoint: It mentions names that are not known to be harmless.
        CheckpointError: It is damaged, or does not hold a tensor.
    """
    pickled, storages = _parts(file, trust_pickle)
    if not isinstance(pickled.root, TensorView):
        _refuse(file, "it does not hold one plain tensor. ")
    try:
        return _record("the tensor", pickled.root, storages)
    except MalformedPickleError as error:
        _refuse(file, f"its tensor cannot be read: {error}. ")


def _parts(file: SourceFile, trust_pickle: bool) -> Parts:
    read = _zip_parts if file.read(0, min(4, file.size)) == LOCAL_HEADER else _legacy_parts
    return read(file, trust_pickle)


def _refuse_unsafe(file: SourceFile, pickled: Unpickled) -> NoReturn:
    names = [shown(name) for name in pickled.unknown]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    named = f"{', '.join(names[:LISTED])}{more}"
    if holds_module(pickled.root):
        raise UnsafeCheckpoint(f"{file.name} was not loaded: it holds {WHOLE_MODULE} ({named})")
    raise UnsafeCheckpoint(
        f"{file.name} was not loaded: it holds Python objects ({named}), and loading them can "
        "run code.\nAsk for a .safetensors file; or, if you trust whoever wrote it, pass "
        "--trust-pickle."
    )


def _record(name: str, view: TensorView, storages: Callable[[StoredElements], Storage]) -> Record:
    """The record of one tensor, after checking that it lies inside its storage."""
    if view.dtype not in SUPPORTED:
        raise MalformedPickleError(f"its dtype {view.dtype} is not supported")
    storage = storages(view.storage)
    size = view.dtype.itemsize
    held = storage.nbytes // size
    numel = math.prod(view.shape)
    strides = None if _contiguous(view) else view.strides
    reach = numel - 1 if strides is None else _reach(view)
    if numel and view.offset + reach >= held:
        raise MalformedPickleError(
            f"it reaches element {view.offset + reach} of a storage of {held} elements"
        )
    if numel > held:
        raise MalformedPickleError(
            f"it spreads {held} elements over {numel}; save tensor.contiguous()"
        )
    place = f"storage {view.storage.key}, element {view.offset}, strides {strides}"
    spec = TensorSpec(view.shape, view.dtype, place if numel else f"empty {name}")
    return Record(spec, storage.region, storage.offset + view.offset * size, strides)


def _reach(view: TensorView) -> int:
    return sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))


def _contiguous(view: TensorView) -> bool:
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _zip_parts(file: SourceFile, trust_pickle: bool) -> Parts:
    entries = open_zip(file, compressed=False)
    prefix = _prefix(file, entries)
    order = entries.get(f"{prefix}byteorder")
    if order is not None and (order.size > 16 or order.bytes() != b"little"):
        _refuse(file, "its byte order is not little-endian; save it again on a usual machine. ")
    index = entries[f"{prefix}data.pkl"]
    if index.size > LARGEST_PICKLE:
        _refuse(file, f"its index has {index.size} bytes, and the limit is {LARGEST_PICKLE}. ")
    pickled = read_pickle(file, index.bytes(), trust_pickle=trust_pickle)
    return pickled, lambda storage: _zip_storage(entries, prefix, storage)


def _prefix(file: SourceFile, entries: Mapping[str, Entry]) -> str:
    """The folder inside the archive that everything lies in."""
    found = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if any(name == "constants.pkl" or name.endswith("/constants.pkl") for name in entries):
        _refuse(file, "it is a TorchScript archive, which is a program. Save the state dict. ")
    if len(found) != 1:
        _refuse(file, f"it has {len(found)} data.pkl, and one was expected. ")
    return found[0].removesuffix("data.pkl")


def _zip_storage(entries: Mapping[str, Entry], prefix: str, storage: StoredElements) -> Storage:
    entry = entries.get(f"{prefix}data/{storage.key}")
    if entry is None:
        raise MalformedPickleError(f"its storage {shown(storage.key)} is missing")
    if entry.size != storage.numel * storage.dtype.itemsize:
        raise MalformedPickleError(
            f"its storage {shown(storage.key)} has {entry.size} bytes, and "
            f"{storage.numel * storage.dtype.itemsize} are claimed"
        )
    return Storage(entry.region, 0, entry.size)


def _legacy_parts(file: SourceFile, trust_pickle: bool) -> Parts:
    """The form before torch 1.6: four pickles, a list of keys, then storages with lengths."""
    data = file.read(0, min(file.size, LARGEST_PICKLE))
    magic = read_pickle(file, data, trust_pickle=trust_pickle)
    if magic.root != LEGACY_MAGIC:
        _refuse(file, "it is a pickle, but not one of torch.save. Save model.state_dict(). ")
    protocol = read_pickle(file, data, magic.end, trust_pickle=trust_pickle)
    if protocol.root != LEGACY_PROTOCOL:
        _refuse(file, f"its protocol is not {LEGACY_PROTOCOL}. ")
    system = read_pickle(file, data, protocol.end, trust_pickle=trust_pickle)
    if not isinstance(system.root, dict) or system.root.get("little_endian") is not True:
        _refuse(file, "its byte order is not little-endian. ")
    pickled = read_pickle(file, data, system.end, trust_pickle=trust_pickle)
    keys = read_pickle(file, data, pickled.end, trust_pickle=trust_pickle)
    if not isinstance(keys.root, list) or not all(isinstance(key, str) for key in keys.root):
        _refuse(file, "its list of storages is not one. ")
    return pickled, _legacy_storages(file, keys.root, pickled.storages, keys.end)


def _legacy_storages(
    file: SourceFile, keys: list[str], known: Mapping[str, StoredElements], start: int
) -> Callable[[StoredElements], Storage]:
    """Finds storages by walking the file: each is its number of elements, then the elements."""
    if set(keys) != known.keys() or len(keys) != len(known):
        _refuse(file, "its list of storages is not that of its tensors. ")
    found = {}
    at = start
    for key in keys:
        numel, size = known[key].numel, known[key].dtype.itemsize
        end = at + 8 + numel * size
        if end > file.size:
            _refuse(file, f"its storage {shown(key)} does not lie inside it (truncated?). ")
        stated = int.from_bytes(file.read(at, at + 8), "little", signed=True)
        if stated != numel:
            _refuse(file, f"its storage {shown(key)} has {stated} elements, {numel} are claimed. ")
        found[key] = Storage(FileRegion(file, at + 8, numel * size), 0, numel * size)
        at = end
    return lambda storage: found[storage.key]


def read_pickle(
    file: SourceFile, data: bytes, start: int = 0, *, trust_pickle: bool = False
) -> Unpickled:
    """What a pickle from that file holds; an error where it is damaged or could run code.

    Raises:
        UnsafeCheckpoint: It mentions names that are not known to be harmless.
        CheckpointError: It cannot be read to its end.
    """
    pickled = unpickle(data, start)
    if pickled.unknown and not trust_pickle:
        _refuse_unsafe(file, pickled)
    if pickled.failure:
        _refuse(file, f"its pickle cannot be read: {pickled.failure}. ")
    return pickled


def _refuse(file: SourceFile, why: str) -> NoReturn:
    raise CheckpointError(
        f"{file.name} is not a usable file of torch.save: {why}"
        "Save it again with torch.save, or as .safetensors."
    )
