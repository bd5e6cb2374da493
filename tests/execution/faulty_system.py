"""A system whose calls fail when told to: for tests that fail the N-th of them, for every N."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

READING = ("stat", "lstat", "fstat", "pread", "preadv")
WRITING = (
    "open", "posix_fallocate", "pwrite", "write", "fdatasync", "fsync", "ftruncate", "link",
    "replace", "rename", "unlink", "mkdir", "close",
)  # fmt: skip


class System:
    """Counts calls, and makes one of them fail.

    Args:
        call: The name of the call in ``os``.
        number: Which of its calls fails, from 1.
        reason: The errno.
        onwards: Whether all later ones fail as well.
    """

    def __init__(self, call: str, number: int, reason: int, *, onwards: bool = False) -> None:
        self.call, self.number, self.reason, self.onwards = call, number, reason, onwards
        self.calls: Counter[str] = Counter()
        self.armed = True
        self._lock = threading.Lock()

    @property
    def failed(self) -> bool:
        """Whether the call that was to fail was made."""
        return self.calls[self.call] >= self.number

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which fails when it is its turn."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
                count = self.calls[name]
            turn = name == self.call and self.armed
            if turn and (count == self.number or (self.onwards and count > self.number)):
                if name == "close":
                    real(*args, **kwargs)
                raise OSError(self.reason, os.strerror(self.reason))
            return real(*args, **kwargs)

        return call


@contextmanager
def faulty(system: System) -> Iterator[System]:
    """Put these calls in the place of the real ones for a while."""
    real = {name: getattr(os, name) for name in (*READING, *WRITING)}
    for name, call in real.items():
        setattr(os, name, system.wrapped(name, call))
    try:
        yield system
    finally:
        # What is closed later may still hold the call that was put in place.
        system.armed = False
        for name, call in real.items():
            setattr(os, name, call)
