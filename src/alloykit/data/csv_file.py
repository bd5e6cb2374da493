"""Tables in csv files: one example a row, one column the target."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alloykit.errors import DataError, did_you_mean, listing


@dataclass(frozen=True)
class Table:
    """What a csv file holds.

    Attributes:
        inputs: Float32 [row, column], without the target.
        targets: [row]: int64 for classes and whole numbers, else float64.
        class_names: Names of the classes where targets are text, else None.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    class_names: tuple[str, ...] | None


def read_csv(
    path: str | Path,
    *,
    target: str | int = -1,
    header: bool | None = None,
    delimiter: str = ",",
    classes: Sequence[str] | None = None,
) -> Table:
    """Numbers and targets of a csv file (.gz or not, UTF-8).

    Targets that are not all numbers are classes: their names in sorted order, or ``classes``.
    Splits in several files need ``classes`` where one of them may lack a class.

    Args:
        path: The file.
        target: Name of the target's column, or its position; -1 is the last.
        header: Whether the first row has the names. None finds out: it does where none of its
            cells is a number, or one is text above a number.
        delimiter: What separates the cells.
        classes: Names of the classes in order.

    Raises:
        DataError: A missing or damaged file, rows of unequal lengths, cells that are no numbers,
            an unknown column or class; with the lines.
    """
    file = Path(path)
    rows = [(line, row) for line, row in _rows(file, delimiter) if row]
    if not rows:
        raise DataError(f"{file} has no rows.")
    named = _has_header(rows) if header is None else header
    names = [cell.strip() for cell in rows[0][1]] if named else None
    body = rows[1:] if named else rows
    if not body:
        raise DataError(f"{file} has a header and no rows.")
    width = len(rows[0][1])
    _check_widths(file, body, width, delimiter)
    column = _column(file, target, names, width)
    if header is None and not named:
        _refuse_likely_header(file, body, column)
    inputs = _inputs(file, body, column, names)
    wanted, class_names = _targets(file, body, column, classes)
    return Table(inputs, wanted, class_names)


def _rows(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with _text(file) as text:
            reader = csv.reader(text, delimiter=delimiter)
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except (EOFError, zlib.error, OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}. Fetch or save it again.") from error


def _text(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(file), encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _has_header(rows: Sequence[tuple[int, list[str]]]) -> bool:
    first = [_number(cell) is not None for cell in rows[0][1]]
    if not any(first):
        return True
    second = [_number(cell) is not None for cell in rows[1][1]] if len(rows) > 1 else []
    return any(not above and below for above, below in zip(first, second, strict=False))


def _refuse_likely_header(file: Path, body: Sequence[tuple[int, list[str]]], column: int) -> None:
    """A header of numbers would become an example, and its first cell a class."""
    first, others = body[0][1][column], {row[column] for _, row in body[1:]}
    if len(others) > 1 and first not in others and _number(first) is None:
        raise DataError(
            f"{file}, line {body[0][0]}: the target {first!r} occurs nowhere else: this may be a "
            "header. Say header: true, or header: false if it is an example."
        )


def _check_widths(
    file: Path, body: Sequence[tuple[int, list[str]]], width: int, delimiter: str
) -> None:
    wrong = [f"line {line}: {len(row)} cells" for line, row in body if len(row) != width]
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} rows do not have the {width} cells of the first row:\n"
            f"{listing(wrong)}\nMend these lines; cells are separated by {delimiter!r}."
        )
    if width < 2:
        raise DataError(
            f"{file} has one column, and it takes inputs and a target. Is {delimiter!r} the "
            "delimiter?"
        )


def _column(file: Path, target: str | int, names: list[str] | None, width: int) -> int:
    if isinstance(target, str):
        if names is None:
            raise DataError(
                f"{file} has no header, so there is no column {target!r}. Give the target as a "
                "position: 0 is the first column, -1 the last."
            )
        if target not in names:
            raise DataError(
                f"{file} has no column {target!r}.{did_you_mean(target, names)} "
                f"It has:\n{listing(names)}"
            )
        return names.index(target)
    if not -width <= target < width:
        raise DataError(f"{file} has {width} columns, so there is no column {target}.")
    return target % width


def _inputs(
    file: Path, body: Sequence[tuple[int, list[str]]], column: int, names: list[str] | None
) -> NDArray[np.float32]:
    found = np.empty((len(body), len(body[0][1]) - 1), dtype=np.float32)
    wrong: list[str] = []
    for i, (line, row) in enumerate(body):
        cells = row[:column] + row[column + 1 :]
        try:
            found[i] = [float(cell) for cell in cells]
        except ValueError:
            wrong += _not_numbers(line, row, column, names)
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} cells are not numbers:\n{listing(wrong)}\n"
            "Fill empty cells and turn categories into numbers first."
        )
    return found


def _not_numbers(line: int, row: list[str], column: int, names: list[str] | None) -> list[str]:
    return [
        f"line {line}, column {names[j] if names else j}: {cell!r}"
        for j, cell in enumerate(row)
        if j != column and _number(cell) is None
    ]


def _targets(
    file: Path,
    body: Sequence[tuple[int, list[str]]],
    column: int,
    classes: Sequence[str] | None,
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    cells = [row[column].strip() for _, row in body]
    numbers = [_number(cell) for cell in cells]
    if classes is None and None not in numbers:
        values = np.array(numbers, dtype=np.float64)
        whole = np.isfinite(values).all() and (values == np.round(values)).all()
        return (values.astype(np.int64) if whole else values), None
    known = tuple(sorted(set(cells)) if classes is None else classes)
    number_of = {name: i for i, name in enumerate(known)}
    wrong = [
        f"line {line}: {cell!r}"
        for (line, _), cell in zip(body, cells, strict=True)
        if cell not in number_of or not cell
    ]
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} targets are empty or not among the classes:\n{listing(wrong)}\n"
            f"The classes: {', '.join(name for name in known[:20] if name)}."
        )
    return np.array([number_of[cell] for cell in cells], dtype=np.int64), known
