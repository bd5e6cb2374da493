"""How names, paths and sizes from outside appear in messages: printable, short, unmistakable."""

from __future__ import annotations

LONGEST = 120


def shown(text: object) -> str:
    r"""``text`` as one printable line: control characters escaped, the middle of long texts cut.

    Example:
        >>> shown("layer.weight"), shown("a\nb")
        ('layer.weight', 'a\\nb')
    """
    line = text if isinstance(text, str) else repr(text)
    if not line.isprintable():
        line = line.encode("unicode_escape", "backslashreplace").decode("ascii")
    if len(line) > LONGEST:
        half = LONGEST // 2
        line = f"{line[:half]}...{line[-half:]}"
    return line


def amount(nbytes: int) -> str:
    """A number of bytes for people.

    Example:
        >>> amount(999), amount(2_500_000)
        ('999 bytes', '2.5 MB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def counted(count: int, noun: str) -> str:
    """The count with its noun in the right number.

    Example:
        >>> counted(1, "tensor"), counted(2, "tensor")
        ('1 tensor', '2 tensors')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
