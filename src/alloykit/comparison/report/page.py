"""The report of a comparison: one HTML file that needs nothing else and asks nobody."""

from __future__ import annotations

import base64
import hashlib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alloykit.checkpoints.writing import atomic_write
from alloykit.comparison.leaderboard import FAMILIES, left_out
from alloykit.comparison.report import panels, trained_panels, wording
from alloykit.comparison.report.data import Agreement, Barrier, ReportData, check
from alloykit.comparison.report.headline import figures, headline
from alloykit.comparison.report.table import Leaderboard, leaderboard

__all__ = ["Agreement", "Barrier", "ReportData", "render_report", "write_report"]

FAMILY_NAMES = {
    "member": "Single members",
    "predictions": "Combined predictions",
    "weights": "Merged weights",
    "soup": "Soups",
    "fusion": "Fusion heads",
    "student": "Students",
    "federated": "Federated",
    "retrained": "Retrained",
}


def write_report(data: ReportData, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        data: What to show.
        path: Where to; its folder must exist.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        OutputExists: The file exists and ``overwrite`` is off.
        DataError: The data contradict themselves.
    """
    page = render_report(data).encode()
    target = Path(path).expanduser()
    with atomic_write(target, overwrite=overwrite) as file:
        file.write(page)
    return target


def render_report(data: ReportData) -> str:
    """The report as HTML text: the same text for the same data.

    The page makes no request: styles, script and drawings are inside, and its content security
    policy forbids everything else. Whatever comes from names and files is escaped.

    Raises:
        DataError: The data contradict themselves; all contradictions are listed.
    """
    check(data)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_part("report.html.j2")).render(**_context(data))
    return _writable(page)


def _context(data: ReportData) -> dict[str, Any]:
    table = leaderboard(data)
    script = _part("report.js")
    titles, lines = panels.member_table(data.members)
    context = {
        "data": data,
        "version": metadata.version("alloykit"),
        "style": Markup(_part("report.css")),
        "script": Markup(script),
        "script_hash": _hash(script),
        "headline": headline(data),
        "figures": figures(data),
        "table": table,
        "axis": _axis(data, table),
        "families": _families(table),
        "reason": wording.unbroken(data.recommendation_reason),
        "gains": any(column.title == "Gain" for column in table.columns),
        "cost": panels.cost_panel(data, table.domain),
        "calibration": panels.calibration_panels(data),
        "barriers": panels.barrier_panels(data),
        "wrong": any(b.errors is not None for b in data.barriers),
        "reestimated": any(b.losses_reestimated is not None for b in data.barriers),
        "learning": trained_panels.learning_panels(data),
        "reliance": trained_panels.reliance(data),
        "heat": panels.heat_map(data),
        "heat_words": panels.agreement_words(data),
        "member_titles": titles,
        "member_lines": lines,
        "left_out": left_out(data.rows),
        "recipes": _recipes(data, table),
        "family_names": FAMILY_NAMES,
        "short_digest": panels.short_digest,
        "safe": Markup,
    }
    return context | {"links": _links(data, context)}


def _axis(data: ReportData, table: Leaderboard) -> tuple[str, str] | None:
    """What stands at the two ends of the intervals' common axis."""
    if table.domain is None:
        return None
    low, high = (wording.score(end, data.metric, data.test_examples) for end in table.domain)
    return low, high


def _families(table: Leaderboard) -> list[tuple[str, str, int]]:
    """(family, its name, number of rows) of those that are there, in a fixed order."""
    present = [line.row.family for line in table.lines]
    return [(f, FAMILY_NAMES[f], present.count(f)) for f in FAMILIES if f in present]


def _recipes(data: ReportData, table: Leaderboard) -> list[tuple[str, str]]:
    """(candidate, snippet): the recommended one first, then as in the leaderboard."""
    order = [line.row.candidate for line in table.lines]
    order.sort(key=lambda name: name != data.recommendation)
    return [(name, data.reproduce[name]) for name in order if name in data.reproduce]


def _links(data: ReportData, context: dict[str, Any]) -> list[tuple[str, str]]:
    """(anchor, title) of the sections that are there."""
    sections = (
        ("leaderboard", "Leaderboard", context["table"].lines),
        ("cost", "Cost", context["cost"]),
        ("calibration", "Calibration", context["calibration"]),
        ("reliance", "Whom it believes", context["reliance"]),
        ("learning", "Training", context["learning"]),
        ("barriers", "Barriers", context["barriers"]),
        ("agreement", "Agreement", context["heat"]),
        ("members", "Members", context["member_lines"]),
        ("left-out", "Left out", context["left_out"]),
        ("reproduce", "Do it again", data.command or context["recipes"]),
    )
    return [(anchor, title) for anchor, title, there in sections if there]


def _part(name: str) -> str:
    return resources.files("alloykit.comparison.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _writable(page: str) -> str:
    """Without control characters and halves of characters, which names of files may hold."""
    kept = "".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in page)
    return kept.encode("utf-8", "replace").decode()
