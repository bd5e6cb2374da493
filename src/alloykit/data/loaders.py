"""Datasets, DataLoaders and lists of batches, each read again and again in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from alloykit.data.batches import Batch, as_batch
from alloykit.errors import DataError


def reader(source: Any, name: str, batch_size: int) -> Callable[[], Iterator[Batch]]:
    """A function that starts a reading of all batches of the source.

    Args:
        source: A Dataset, a DataLoader, or a re-readable iterable of batches.
        name: The split, for errors.
        batch_size: Examples per batch where the source does not say.

    Raises:
        DataError: A one-shot iterator, or something that is none of these.
    """
    iterable = _re_readable(source, name, batch_size)

    def read() -> Iterator[Batch]:
        for number, batch in enumerate(iterable, start=1):
            yield as_batch(batch, f"Batch {number} of {name}")

    return read


def _re_readable(source: Any, name: str, batch_size: int) -> Iterable[Any]:
    if isinstance(source, DataLoader):
        return in_order(source)
    if isinstance(source, IterableDataset) or _is_dataset(source):
        return _plain_loader(source, batch_size)
    if hasattr(source, "__next__"):
        raise DataError(
            f"The {name} split is a {type(source).__name__}, which can be read only once, and "
            "every model must see the same examples. Pass a list of batches or a Dataset."
        )
    if not isinstance(source, str | bytes | dict) and hasattr(source, "__iter__"):
        return source  # type: ignore[no-any-return]
    raise DataError(
        f"The {name} split cannot be read from a {type(source).__name__}. "
        "Pass (inputs, targets), a Dataset, a DataLoader or a list of batches."
    )


def _is_dataset(source: Any) -> bool:
    """Whether single examples are reached by index; a list is one if its targets are scalars."""
    if isinstance(source, list | tuple):
        pair = source[0] if source else None
        return isinstance(pair, list | tuple) and len(pair) == 2 and _is_scalar(pair[1])
    if isinstance(source, Dataset):
        return True
    sized = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return sized and not isinstance(source, str | bytes | dict | torch.Tensor)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "ndim") and value.ndim == 0)


def _plain_loader(dataset: Any, batch_size: int | None, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, drop_last=False, **options)


def in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over the same examples in the order of the dataset, none left out.

    A loader over an IterableDataset, one with a sampler of its own and any subclass of DataLoader
    are returned as they are.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return loader
    batch_sampler: Any = loader.batch_sampler
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    dataset = _sampled(loader.dataset, sampler)
    kept_whole = type(sampler) is SequentialSampler and not getattr(
        batch_sampler, "drop_last", False
    )
    if dataset is None or kept_whole:
        return loader
    return _plain_loader(
        dataset,
        getattr(batch_sampler, "batch_size", loader.batch_size),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _sampled(dataset: Dataset[Any], sampler: object) -> Dataset[Any] | None:
    """The part of the dataset that the sampler draws from; None where that cannot be known."""
    if type(sampler) is SubsetRandomSampler:
        return Subset(dataset, sorted(sampler.indices))
    if type(sampler) is RandomSampler and not sampler.replacement:
        whole = sampler.num_samples == len(dataset)  # type: ignore[arg-type]
        return dataset if whole else None
    return dataset if type(sampler) is SequentialSampler else None
