"""How much memory and how many threads a merge may take, and what follows for its blocks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from alloykit.errors import InvalidParameter
from alloykit.execution.arithmetic import Arithmetic
from alloykit.types import GRAIN

BLOCK = 1 << 20
SMALLEST_BLOCK, LARGEST_BLOCK = 64 << 10, 64 << 20
MOST_THREADS = 16
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a merge may take of the machine. None of it changes a bit of the result.

    Attributes:
        memory: Bytes that the blocks in flight may take together, or None for small blocks.
        threads: Number of threads; by default one a core, at most 16, and one alone where more
            would only wait for one another.
        block: Bytes of an output block; by default 1 MiB, or what ``memory`` allows.
        device: Where the arithmetic is done: "cpu" or a CUDA device.
        sync: Bytes after which what was written is made durable and noted in the journal.
    """

    memory: int | None = None
    threads: int | None = None
    block: int | None = None
    device: str = "cpu"
    sync: int = 1 << 30

    def chosen_threads(self, arithmetic: Arithmetic) -> int:
        """The number of threads."""
        if self.threads is None:
            cores = min(MOST_THREADS, len(os.sched_getaffinity(0)))
            return 1 if self.device == "cpu" and bound_to_python(arithmetic) else cores
        if self.threads < 1:
            raise InvalidParameter(f"'threads' must be at least 1. Got {self.threads}.")
        return self.threads

    def fitted(self, arithmetic: Arithmetic) -> tuple[int, int]:
        """Threads, and bytes of a block, that keep within the memory.

        Raises:
            InvalidParameter: Not even one thread with the smallest block fits.
        """
        threads = self.chosen_threads(arithmetic)
        if self.block is not None:
            return threads, min(max(self.block, SMALLEST_BLOCK), LARGEST_BLOCK)
        if self.memory is None:
            return threads, BLOCK * 16 if self.device != "cpu" else BLOCK
        while threads > 1 and needed(arithmetic, threads, SMALLEST_BLOCK) > self.memory:
            threads -= 1
        least = needed(arithmetic, threads, SMALLEST_BLOCK)
        if least > self.memory:
            raise InvalidParameter(
                f"{arithmetic.plan.method} needs at least {-(-least // 10**6)} MB for these "
                f"models, and 'memory' allows {self.memory // 10**6} MB. Allow more."
            )
        block = SMALLEST_BLOCK
        while block < BLOCK and needed(arithmetic, threads, 2 * block) <= self.memory:
            block *= 2
        return threads, block


def bound_to_python(arithmetic: Arithmetic) -> bool:
    """Whether blocks take so many short operations that threads spend their gain on Python's lock.

    Neither sums, which run compiled, nor operations on whole matrices, which are long, do.
    """
    first = next((step for step in arithmetic.plan.steps if step.action == "merge"), None)
    if first is None:
        return False
    method = arithmetic.merged(first).method
    return method.unit != "tensor" and method.factors is None


def needed(arithmetic: Arithmetic, threads: int, block: int) -> int:
    """About how many bytes the blocks in flight take, and matrices that must be held whole."""
    inputs = len(arithmetic.inputs.members) + (arithmetic.inputs.base is not None)
    # Raw blocks of up to twice the output's width, the tiles in float32, and temporaries.
    per_thread = (2 * inputs + 1) * block + 4 * GRAIN * (2 * inputs + 8)
    merged = [arithmetic.merged(s) for s in arithmetic.plan.steps if s.action == "merge"]
    whole = max((m.numel for m in merged if m.whole(block // 2)), default=0)
    return threads * (per_thread + 4 * whole * (2 * inputs + 4))


def parsed_bytes(text: str | int | None, name: str) -> int | None:
    """A number of bytes as people write it: 2GB, 512MiB, 1000000.

    Raises:
        InvalidParameter: It is no positive number of bytes.

    Example:
        >>> parsed_bytes("1.5GB", "memory"), parsed_bytes("64KiB", "memory")
        (1500000000, 65536)
    """
    if text is None:
        return None
    given = str(text).strip().lower().replace(" ", "")
    digits = given.rstrip("kmgtib")
    try:
        value = int(float(digits) * UNITS[given[len(digits) :]])
    except (KeyError, ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise InvalidParameter(
            f"{name!r} must be a number of bytes, such as 2GB or 512MiB. Got {text!r}."
        )
    return value
