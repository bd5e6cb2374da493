"""An interpreter for pickles that cannot run anything: it knows no imports and makes no calls.

Only the sixty opcodes that data needs are handled: their arguments are read by ``pickle_opcodes``,
and what they do is in ``pickle_machine``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alloykit.checkpoints.pickle_globals import MalformedPickleError, StoredElements
from alloykit.checkpoints.pickle_machine import STEPS, Machine, Step
from alloykit.checkpoints.pickle_opcodes import NAMES, READERS, Reader
from alloykit.checkpoints.wording import shown

STOP = ord(".")

Run: TypeAlias = Callable[[Machine, bytes, int], int]
"""An opcode: what it does, reading the argument from there; gives where the next opcode is."""


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds, as records.

    Attributes:
        root: Dictionaries, lists, tuples, numbers, text, tensors' records and placeholders.
        unknown: Names it mentions that are not known to be harmless, in order.
        storages: Every storage that it refers to, by key.
        end: The first byte behind it.
        failure: Why it could not be read to its end; "" where it could.
    """

    root: Any
    unknown: tuple[str, ...]
    storages: Mapping[str, StoredElements]
    end: int = 0
    failure: str = ""


def unpickle(data: bytes, start: int = 0) -> Unpickled:
    """Read one pickle without running anything that it asks for.

    Args:
        data: Bytes that hold the pickle.
        start: Where it begins among them.
    """
    machine = Machine(len(data) - start)
    root: Any = None
    failure = ""
    end = len(data)
    try:
        end = _run(machine, data, start)
        root = machine.stack.pop()
    except struct.error:
        failure = "it ends in the middle of a number"
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        known = isinstance(error, ValueError)
        failure = shown(str(error)) if known else "its stack does not work out"
    return Unpickled(root, tuple(machine.unknown), machine.storages, end, failure)


def _run(machine: Machine, data: bytes, at: int) -> int:
    """Follow the opcodes to the end; gives the first byte behind it."""
    size = len(data)
    while at < size:
        opcode = data[at]
        if opcode == STOP:
            return at + 1
        at = _RUN[opcode](machine, data, at + 1)
    raise MalformedPickleError("it has no end")


# The opcodes that make up nearly all of a torch file, with their arguments read in place: a file
# of 100,000 tensors has three million of them.


def _put_at_byte(machine: Machine, data: bytes, at: int) -> int:
    machine.memo[data[at]] = machine.stack[-1]
    return at + 1


def _put_at_word(machine: Machine, data: bytes, at: int) -> int:
    machine.memo[_WORD(data, at)[0]] = machine.stack[-1]
    return at + 4


def _get_at_byte(machine: Machine, data: bytes, at: int) -> int:
    machine.stack.append(machine.memo[data[at]])
    return at + 1


def _small_integer(machine: Machine, data: bytes, at: int) -> int:
    machine.stack.append(data[at])
    return at + 1


def _mark(machine: Machine, _data: bytes, at: int) -> int:
    machine.outer.append(machine.stack)
    machine.stack = []
    return at


def _tuple(machine: Machine, _data: bytes, at: int) -> int:
    items = tuple(machine.stack)
    machine.stack = machine.outer.pop()
    machine.stack.append(items)
    return at


def _last(count: int) -> Run:
    """A tuple of the last so many things."""

    def run(machine: Machine, _data: bytes, at: int) -> int:
        stack = machine.stack
        items = tuple(stack[-count:])
        if len(items) < count:
            raise IndexError
        stack[-count:] = [items]
        return at

    return run


def _always(value: Any) -> Run:
    def run(machine: Machine, _data: bytes, at: int) -> int:
        machine.stack.append(value)
        return at

    return run


def _fed(read: Reader, step: Step) -> Run:
    """An opcode with an argument."""

    def run(machine: Machine, data: bytes, at: int) -> int:
        argument, end = read(data, at)
        step(machine, argument)
        return end

    return run


def _bare(step: Step) -> Run:
    """An opcode without an argument."""

    def run(machine: Machine, _data: bytes, at: int) -> int:
        step(machine, None)
        return at

    return run


def _refused(opcode: int) -> Run:
    def run(_machine: Machine, _data: bytes, _at: int) -> int:
        raise MalformedPickleError(f"the opcode {NAMES.get(opcode, opcode)} is not allowed")

    return run


_RUNS: dict[str, Run] = {
    **{n: _fed(READERS[n], s) if n in READERS else _bare(s) for n, s in STEPS.items()},
    "BINPUT": _put_at_byte,
    "LONG_BINPUT": _put_at_word,
    "BINGET": _get_at_byte,
    "BININT1": _small_integer,
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "EMPTY_TUPLE": _always(()),
    "NONE": _always(None),
    "NEWTRUE": _always(True),
    "NEWFALSE": _always(False),
}

_RUN: list[Run] = [_RUNS.get(NAMES.get(byte, ""), _refused(byte)) for byte in range(256)]
_WORD = struct.Struct("<I").unpack_from
