"""rows.jsonl: what was found so far, line by line, so that a comparison survives and resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alloykit.checkpoints.writing import atomic_write
from alloykit.errors import OutputExists, listing
from alloykit.types import Costs, Interval, Row

ROWS, FINGERPRINT, REPORT = "rows.jsonl", "fingerprint.json", "report.html"


class Journal:
    """The rows of one comparison, in memory and, where a folder is given, on disk as they come.

    Args:
        folder: Where to keep them; None keeps them in memory only.
        fingerprint: What identifies the comparison. A folder with another one is refused.
        overwrite: Start anew in a folder that holds another comparison.

    Raises:
        OutputExists: The folder holds another comparison; the differences are listed.
    """

    def __init__(
        self, folder: Path | None, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self._rows: dict[str, Row] = {}
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise OutputExists(f"{folder} is a file, and the output needs a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        now = json.loads(json.dumps(fingerprint))
        if not overwrite:
            self._rows = _resumed(folder, now)
        if not self._rows:
            (folder / ROWS).unlink(missing_ok=True)
            with atomic_write(folder / FINGERPRINT, overwrite=True) as file:
                file.write(json.dumps(now, indent=1).encode())

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows so far, in the order in which they were first written."""
        return tuple(self._rows.values())

    def finished(self, candidate: str) -> Row | None:
        """The row of a candidate that is done; failed and skipped ones are tried again."""
        row = self._rows.get(candidate)
        return row if row is not None and row.status == "done" else None

    def add(self, row: Row) -> None:
        """Keep a row; on disk before this returns."""
        known = self._rows.get(row.candidate) == row
        self._rows[row.candidate] = row
        if self.folder is None or known:
            return
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _resumed(folder: Path, now: Mapping[str, Any]) -> dict[str, Row]:
    """The rows of an interrupted run of this comparison; OutputExists where it is another one."""
    if not (folder / FINGERPRINT).exists():
        others = [name for name in (ROWS, REPORT) if (folder / name).exists()]
        if others:
            raise OutputExists(
                f"{folder} has files that are not of a comparison known here:\n{listing(others)}\n"
                "Choose another output folder, or replace them with --overwrite."
            )
        return {}
    try:
        before = json.loads((folder / FINGERPRINT).read_text())
        rows = _read_rows(folder / ROWS)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputExists(
            f"The rows in {folder} cannot be read ({error}). "
            "Choose another output folder, or start anew there with --overwrite."
        ) from None
    different = [key for key in now if before.get(key) != now[key]]
    if different:
        raise OutputExists(
            f"{folder} holds the rows of another comparison; it differs in:\n"
            f"{listing(different)}\n"
            "Choose another output folder, or start anew there with --overwrite."
        )
    return {row.candidate: row for row in rows}


def to_json(row: Row) -> dict[str, Any]:
    """A row as JSON values; numbers that JSON lacks (NaN, infinities) become null."""
    plain: dict[str, Any] = _plain(asdict(row))
    return plain


def from_json(data: Mapping[str, Any]) -> Row:
    """The row that ``to_json`` gave."""
    values = dict(data)
    values["intervals"] = {k: _interval(v) for k, v in data["intervals"].items()}
    for key in ("improvement", "validation_improvement"):
        values[key] = data[key] and _interval(data[key])
    for key in ("validation", "test"):
        values[key] = {k: math.nan if v is None else v for k, v in data[key].items()}
    values["costs"] = data["costs"] and Costs(**data["costs"])
    values["members"], values["notes"] = tuple(data["members"]), tuple(data["notes"])
    values["calibration"] = tuple((c, a, n) for c, a, n in data["calibration"])
    return Row(**values)


def _interval(data: Mapping[str, Any]) -> Interval:
    return Interval(**{k: math.nan if v is None else v for k, v in data.items()})


def _read_rows(path: Path) -> list[Row]:
    """The rows of a file whose last line may be torn by a kill; a torn line is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [from_json(json.loads(line)) for line in whole.splitlines()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
