"""Threads: as many as a piece of arithmetic is worth, and no two libraries' at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

SHORT = 1 << 21
"""Multiplications of a step up to which one thread of torch is as fast as several."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """What ``work`` makes of each item, in their order, by so many threads of ours.

    Each computes with one thread of torch. BLAS has to be told by the caller, once for all.

    Example:
        >>> list(mapped(abs, [-1, 2], threads=2))
        [1, 2]
    """
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        yield from pool.map(work, items)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch from using several threads inside each of ours; what was set comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """Run a loop of many short steps: BLAS on one thread, and torch where a step is short.

    Torch and the BLAS of numpy and scipy each have threads of their own, which keep a core busy
    for a while after their work is done. In a loop that calls both in turn, each waits for cores
    on which the other's threads do nothing: a solver took 28 s on two cores for what takes 0.25 s
    on one.

    Args:
        multiplications: Of one step, roughly; more than 2²¹ leave torch its threads.

    Example:
        >>> with threads_for(1000):
        ...     torch.get_num_threads()
        1
    """
    torchs = one_thread_each() if multiplications <= SHORT else nullcontext()
    with torchs, ThreadpoolController().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """No threads but ours: torch and BLAS take one each, so that bits do not depend on cores."""
    with one_thread_each(), ThreadpoolController().limit(limits=1, user_api="blas"):
        yield
