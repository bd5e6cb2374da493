"""Torch distributed checkpoints made by hand, of the same classes and files that torch writes."""

import io
import pickle

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)


def grid(shape, parts):
    """Offsets and sizes of a tensor cut into so many parts in each dimension, as torch.chunk does."""
    boxes = [((), ())]
    for size, count in zip(shape, parts, strict=True):
        step = -(-size // count) if size else 0
        starts = [min(index * step, size) for index in range(count)]
        boxes = [
            ((*offsets, start), (*sizes, min(step, size - start)))
            for offsets, sizes in boxes
            for start in starts
        ]
    return boxes


def cut(tensor, offsets, sizes):
    """That box of the tensor, in memory of its own."""
    spans = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
    return tensor[spans].clone()


def dcp_folder(folder, tensors, *, parts=None, ranks=2, others=(), change=None, paths=None):
    """Write a checkpoint of these tensors; ``parts`` says how often each is cut per dimension.

    ``change`` is given the Metadata before it is written, to spoil it.
    """
    folder.mkdir(exist_ok=True)
    files = {f"__{rank}_0.distcp": io.BytesIO() for rank in range(ranks)}
    entries, stored = {}, {}
    for name, tensor in tensors.items():
        boxes = grid(tensor.shape, (parts or {}).get(name, (1,) * tensor.dim()))
        entries[name] = TensorStorageMetadata(
            TensorProperties(dtype=tensor.dtype),
            tensor.shape,
            [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes],
        )
        for number, (offsets, sizes) in enumerate(boxes):
            file = f"__{number % ranks}_0.distcp"
            data = io.BytesIO()
            torch.save(cut(tensor, offsets, sizes), data)
            at = files[file].tell()
            files[file].write(data.getvalue())
            info = _StorageInfo(file, at, len(data.getvalue()))
            stored[MetadataIndex(name, torch.Size(offsets), number)] = info
    for name in others:
        entries[name] = BytesStorageMetadata()
        stored[MetadataIndex(name)] = _StorageInfo("__0_0.distcp", 0, 1)
    metadata = Metadata(entries, planner_data=paths, storage_data=stored, version="1.0.0")
    if change:
        metadata = change(metadata) or metadata
    for file, content in files.items():
        (folder / file).write_bytes(content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder
