"""How freed memory is kept: fresh pages cost more than the arithmetic on them."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The options of glibc's ``mallopt``."""

KEPT, LARGEST = 256 << 20, 64 << 20
"""Bytes that stay with the process when freed, and of the largest block that is kept at all."""


def keep_freed_memory() -> None:
    """Let the C library keep blocks that are freed for the next ones of their size.

    By default glibc hands large blocks back to the system at once, which clears every page of the
    next one again. Where the C library is another one, nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
