"""Where every tensor will lie in a safetensors file, known before any of them is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from alloykit.checkpoints.element_types import SAFETENSORS
from alloykit.checkpoints.safetensors_file import TIED
from alloykit.checkpoints.strict_json import encodable
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, listing
from alloykit.types import TensorSpec

NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}

PAGE = 4096
"""The data begins at a multiple of this, so that aligned blocks can bypass the page cache."""


@dataclass(frozen=True)
class Layout:
    """A safetensors file before its data.

    Attributes:
        header: Its first bytes: length, JSON, padding.
        offsets: Stored name -> first byte in the file, ascending.
        tied: Name -> the stored name that it stands for.
        size: Size of the whole file in bytes.
    """

    header: bytes
    offsets: Mapping[str, int]
    tied: Mapping[str, str]
    size: int


def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Layout:
    """The layout of a file of these tensors; equal arguments give equal bytes.

    Names with one place are tied: the first of them is stored.

    Args:
        specs: Name -> shape, dtype and place.
        metadata: Text for the header; "format": "pt" is added, which transformers asks for.

    Raises:
        CheckpointError: No tensors, a dtype that the format lacks, or a name that it cannot hold.
    """
    _check_specs(specs)
    tied = tied_specs(specs)
    # Wide elements first, so that everything is aligned without holes.
    stored = sorted(specs.keys() - tied.keys(), key=lambda n: (-specs[n].dtype.itemsize, n))
    entries: dict[str, object] = {"__metadata__": _metadata(metadata, tied)}
    starts, end = {}, 0
    for name in stored:
        spec = specs[name]
        starts[name], end = end, end + spec.nbytes
        span = [starts[name], end]
        entries[name] = {"data_offsets": span, "dtype": NAMES[spec.dtype], "shape": spec.shape}
    text = json.dumps(entries, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return Layout(header, offsets, tied, len(header) + end)


def tied_specs(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Name -> the earlier name that is the same tensor."""
    first: dict[TensorSpec, str] = {}
    stands_for = {name: first.setdefault(spec, name) for name, spec in specs.items()}
    return {name: kept for name, kept in stands_for.items() if name != kept}


def shards(specs: Mapping[str, TensorSpec], largest: int) -> list[dict[str, TensorSpec]]:
    """The specs in as few groups as their order allows, each of at most ``largest`` bytes.

    A tensor that is larger has a shard of its own; tied names go where the stored one goes.

    Example:
        >>> import torch
        >>> spec = TensorSpec((4,), torch.float32, "")
        >>> from dataclasses import replace
        >>> every = {name: replace(spec, place=name) for name in "abc"}
        >>> [list(shard) for shard in shards(every, 32)]
        [['a', 'b'], ['c']]
    """
    tied = tied_specs(specs)
    groups: list[dict[str, TensorSpec]] = []
    room, where = 0, {}
    for name, spec in specs.items():
        if name in tied:
            continue
        if not groups or spec.nbytes > room:
            groups.append({})
            room = largest
        groups[-1][name] = spec
        where[name] = groups[-1]
        room -= spec.nbytes
    for name, kept in tied.items():
        where[kept][name] = specs[name]
    return groups


def _metadata(given: Mapping[str, str], tied: Mapping[str, str]) -> dict[str, str]:
    metadata = {"format": "pt", **given}
    if tied:
        metadata[TIED] = json.dumps(tied, sort_keys=True, ensure_ascii=False)
    return metadata


def _check_specs(specs: Mapping[str, TensorSpec]) -> None:
    wrong = [
        f"{shown(name)}: {spec.dtype}" for name, spec in specs.items() if spec.dtype not in NAMES
    ]
    wrong += [f"{shown(name)}: not a usable name" for name in specs if not _usable(name)]
    if not specs:
        raise CheckpointError("There is nothing to write: no tensors.")
    if wrong:
        raise CheckpointError(
            f"safetensors cannot hold these tensors:\n{listing(wrong)}\n"
            "Convert them first (complex128 to complex64, for example)."
        )


def _usable(name: str) -> bool:
    return name != "__metadata__" and encodable(name)
