"""The arguments of a pickle's opcodes, read from its bytes and checked against their number."""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from alloykit.checkpoints.pickle_globals import MalformedPickleError

LONGEST_INTEGER = 1024
"""Bytes; Python cannot even print integers of more than 1,785."""

Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
"""The pickle and where an argument begins -> the argument, and where the next opcode is."""

NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
"""Byte -> name of the opcode."""


def _number(form: str) -> Reader:
    unpack, size = struct.Struct(form).unpack_from, struct.calcsize(form)
    return lambda data, at: (unpack(data, at)[0], at + size)


def _byte(data: bytes, at: int) -> tuple[int, int]:
    return data[at], at + 1


def _counted(form: str) -> Reader:
    """So many bytes, with their number in front."""
    unpack, size = struct.Struct(form).unpack_from, struct.calcsize(form)

    def read(data: bytes, at: int) -> tuple[bytes, int]:
        start = at + size
        stop = start + unpack(data, at)[0]
        if not start <= stop <= len(data):
            raise MalformedPickleError(f"it ends before byte {stop}, which it speaks of")
        return data[start:stop], stop

    return read


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise MalformedPickleError("a line without an end")
    return data[at:end], end + 1


def _two_lines(data: bytes, at: int) -> tuple[str, int]:
    module, at = _line(data, at)
    name, at = _line(data, at)
    return f"{module.decode()} {name.decode()}", at


def _made(read: Reader, make: Callable[[bytes], Any]) -> Reader:
    """An argument made from the bytes that ``read`` finds."""

    def made(data: bytes, at: int) -> tuple[Any, int]:
        found, end = read(data, at)
        return make(found), end

    return made


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _python2_text(data: bytes) -> str:
    """A string of Python 2, which torch wrote as UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise MalformedPickleError("a string without quotes")
    return _python2_text(codecs.escape_decode(line[1:-1])[0])


def _integer(data: bytes) -> int:
    if len(data) > LONGEST_INTEGER:
        raise MalformedPickleError(f"an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > LONGEST_INTEGER:
        raise MalformedPickleError(f"an integer of {len(line)} digits")
    return int(line.removesuffix(b"L"))


READERS: dict[str, Reader] = {
    **dict.fromkeys(("PROTO", "BININT1", "BINPUT", "BINGET", "EXT1"), _byte),
    **dict.fromkeys(("BININT2", "EXT2"), _number("<H")),
    **dict.fromkeys(("BININT", "EXT4"), _number("<i")),
    **dict.fromkeys(("LONG_BINPUT", "LONG_BINGET"), _number("<I")),
    "FRAME": _number("<Q"),
    "BINFLOAT": _number(">d"),
    "LONG1": _made(_counted("<B"), _integer),
    "LONG4": _made(_counted("<i"), _integer),
    **dict.fromkeys(("INT", "LONG", "PUT", "GET"), _made(_line, _decimal)),
    "FLOAT": _made(_line, float),
    "STRING": _made(_line, _quoted),
    "SHORT_BINSTRING": _made(_counted("<B"), _python2_text),
    "BINSTRING": _made(_counted("<i"), _python2_text),
    "UNICODE": _made(_line, lambda line: line.decode("raw-unicode-escape")),
    "SHORT_BINUNICODE": _made(_counted("<B"), _utf8),
    "BINUNICODE": _made(_counted("<I"), _utf8),
    "BINUNICODE8": _made(_counted("<Q"), _utf8),
    "SHORT_BINBYTES": _counted("<B"),
    "BINBYTES": _counted("<I"),
    "BINBYTES8": _counted("<Q"),
    "BYTEARRAY8": _counted("<Q"),
    **dict.fromkeys(("GLOBAL", "INST"), _two_lines),
}
"""Name of an opcode -> what reads its argument; the others have none."""
