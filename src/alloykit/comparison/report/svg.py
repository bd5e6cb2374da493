"""Drawings by matplotlib, made fit to stand inside a page: themed, labelled, unique, repeatable."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# matplotlib knows no CSS variables: draw with colours nobody would choose, and replace them.
INK, SOFT, GRID, CARD = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16", "#0a0b17")
_VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
    CARD: "var(--card)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES, 1)},
}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alloykit",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings while a chart is drawn and written, and the reader's own before and after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


class Canvas:
    """One drawing of ``width`` x ``height`` pixels. Use it inside ``drawing()``.

    Free text (names of candidates, of metrics) never reaches matplotlib, which would read ``$`` as
    mathematics and complain about letters that its font lacks: ``write`` gives a token that
    ``svg`` replaces. Everything is escaped there.

    Example:
        >>> with drawing():
        ...     canvas = Canvas("demo", 120, 80)
        ...     axes = canvas.axes(left=20, bottom=20)
        ...     _ = axes.plot([0, 1], [0, 1], color=SERIES[0], gid=canvas.hover("a & b"))
        ...     text = canvas.svg("A rising line")
        >>> "var(--series-1)" in text, "<title>a &amp; b</title>" in text
        (True, True)
    """

    def __init__(self, name: str, width: int, height: int) -> None:
        self.name = name
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._texts: dict[str, str] = {}
        self._titles: dict[str, str] = {}

    def axes(self, *, left: float = 8, right: float = 8, top: float = 8, bottom: float = 8) -> Axes:
        """Axes with these margins in pixels, without minor ticks."""
        axes = self.figure.add_axes(
            (
                left / self.width,
                bottom / self.height,
                (self.width - left - right) / self.width,
                (self.height - top - bottom) / self.height,
            )
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        return axes

    def write(self, text: str) -> str:
        """A token to draw in place of ``text``."""
        token = f"@{len(self._texts)}@"
        self._texts[token] = text
        return token

    def hover(self, text: str) -> str:
        """A ``gid`` for whatever shall show ``text`` under the pointer."""
        gid = f"hover{len(self._titles)}"
        self._titles[gid] = text
        return gid

    def svg(self, alt: str) -> str:
        """The drawing as an ``<svg>`` element that says ``alt`` to those who cannot see it."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        root = ElementTree.fromstring(_bare(buffer.getvalue()))
        self._replace(root)
        _tidy(root, self.name)
        width, height = f"{self.width}", f"{self.height}"
        root.attrib = {"class": "chart", "viewBox": f"0 0 {width} {height}"}
        root.attrib |= {"width": width, "height": height, "role": "img", "aria-label": alt}
        return ElementTree.tostring(root, encoding="unicode")

    def _replace(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            if element.text in self._texts:
                element.text = self._texts[element.text]
            if element.get("id", "") in self._titles:
                title = ElementTree.Element("title")
                title.text = self._titles[element.attrib["id"]]
                element.insert(0, title)
                element.set("class", "hover")


def _bare(text: str) -> str:
    """Only the ``<svg>`` element, without namespaces: inside HTML it needs none."""
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"font-family: [^;\"]*;? ?", "", text)


def _tidy(root: ElementTree.Element, name: str) -> None:
    """Drop what would leak into the page: the global style, ids; and line breaks in paths."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "style":
                parent.remove(child)
    used = set(
        re.findall(r"#([\w.-]+)", " ".join(v for e in root.iter() for v in e.attrib.values()))
    )
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        for key, value in element.attrib.items():
            if key == "href" or "url(#" in value:
                element.set(key, value.replace("#", f"#{name}-"))
            if key == "d":
                element.set(key, " ".join(value.split()))
        if not (element.text or "").strip():
            element.text = None
        element.tail = None


def shortened(name: str, longest: int) -> str:
    """A name that fits beside a point: cut at ``longest`` letters, with an ellipsis."""
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"
