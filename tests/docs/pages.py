"""Read a Markdown page as a list of blocks that can be run.

- ``python`` blocks of one page are run in order and share their names.
- A block whose first line is ``# name.ext`` is also saved as that file beside the others.
- ``yaml`` blocks are study files, or recipes.
- ``bash`` and ``console`` blocks: their ``alloykit`` lines are run; other lines are not.
- ``<!-- set-up … -->`` is Python that the reader does not see; ``<!-- exits with 4 -->`` before
  a block says what its last command ends with.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_PART = re.compile(
    r"^<!-- set-up\n(?P<setup>.*?)^-->$"
    r"|^<!-- exits with (?P<status>\d+) -->$"
    r"|^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_FILE = re.compile(r"# ([\w.-]+\.(?:py|yaml|yml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block, or a set-up.

    Attributes:
        language: "python", "yaml", "bash", ...
        code: Its text.
        line: Where the text begins, from 1.
        exit_status: What its last command is to end with.
    """

    language: str
    code: str
    line: int
    exit_status: int = 0

    @property
    def file(self) -> str:
        """The file that it is to be saved as; "" for none."""
        found = _FILE.match(self.code)
        return found[1] if found else ""

    def commands(self) -> Iterator[list[str]]:
        """The arguments of every ``alloykit`` command in it."""
        for line in self.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["alloykit"]:
                yield words[1:]


def pages() -> list[Path]:
    """Every page with code that readers may copy."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The runnable parts of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    status = 0
    for match in _PART.finditer(text):
        if match["status"]:
            status = int(match["status"])
            continue
        key, language = ("setup", "python") if match["setup"] else ("code", match["language"])
        line = text.count("\n", 0, match.start(key)) + 1
        code = re.sub(rf"^{match['indent'] or ''}", "", match[key] or "", flags=re.MULTILINE)
        found.append(Block(language, code, line, status))
        status = 0
    return found
