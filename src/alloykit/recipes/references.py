"""Where the models of a recipe lie: local paths, from the recipe's own folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import CheckpointError, listing
from alloykit.recipes.mistakes import Mistake, said_in_order
from alloykit.recipes.strict_yaml import Place

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolved_paths(
    references: Iterable[tuple[Place, str]],
    folder: Path,
    where: str,
    lines: Mapping[Place, int],
) -> dict[str, str]:
    """What recipes call models -> their paths, with ``~`` and the recipe's folder put in.

    Args:
        references: Place and text of each.
        folder: Where relative paths start.
        where: What messages call the recipe.
        lines: Place -> line of the recipe's file.

    Raises:
        CheckpointError: Paths with nothing there; all are listed.
    """
    found: dict[str, str] = {}
    missing: list[Mistake] = []
    for place, text in references:
        path, reason = _located(text, folder)
        found[text] = path
        if reason:
            missing.append(Mistake(place, reason))
    if missing:
        raise CheckpointError(
            f"{counted(len(missing), 'file')} of {shown(where)} cannot be opened:\n"
            f"{listing(said_in_order(missing, lines))}\n"
            f"Relative paths start at the recipe's folder, {shown(str(folder.absolute()))}."
        )
    return found


def _located(text: str, folder: Path) -> tuple[str, str]:
    """The path, and why nothing can be opened there; "" where something can."""
    try:
        path = folder / Path(text).expanduser()
        if path.exists():
            return str(path), ""
        file, mark, _ = str(path).rpartition("#")
        if mark and Path(file).exists():
            return str(path), ""
        return str(path), _why_not(text, path)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        return text, f"{shown(text)} is no path that can be opened: {reason}."


def _why_not(text: str, path: Path) -> str:
    if path.is_symlink():
        return f"{shown(text)} is a link to a file that does not exist."
    before, plus, adapter = text.rpartition("+")
    if plus and before and adapter:
        return (
            f"there is no {shown(text)}. If {shown(adapter)} is a LoRA adapter: those are not "
            "merged in yet. Save the model with the adapter merged, and name that."
        )
    name, at, revision = text.rpartition("@")
    if at and name and revision:
        return (
            f"there is no {shown(text)}. Revisions (@{shown(revision)}) are not looked up: "
            "download that revision, and name its folder."
        )
    if Path(text).exists():
        return f"there is no {shown(str(path))}; there is one in the working folder."
    near = _neighbours(path)
    if not near and _HUB_NAME.fullmatch(text):
        return (
            f"there is no {shown(text)} on this machine. If it is a name on a hub: download it "
            "first, and name its folder."
        )
    return f"there is no {shown(text)}.{near}"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f" Did you mean {', '.join(map(shown, close))}?" if close else ""
