"""Where the names of points go, so that none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "center", "right"]
Box = tuple[float, float, float, float]

INDISPENSABLE = 2
GAP = 9.0
"""Pixels from the middle of a point to its label."""


@dataclass(frozen=True)
class Place:
    """Where one label stands: an offset from its point, and the side it is anchored at."""

    dx: float
    dy: float
    side: Side


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    importance: Sequence[int],
    bounds: Box,
    height: float,
    *,
    gaps: Sequence[float] | None = None,
    obstacles: Sequence[Box] = (),
) -> list[Place | None]:
    """A place for each label, or None where it would cover something and is not indispensable.

    Greedy: the important labels first, each at the free place that comes first in a fixed order; an
    indispensable one without a free place takes the one that covers least.

    Args:
        points: Middles of the points in pixels, y upwards.
        widths: Widths of the labels in pixels.
        importance: 2 for labels that must be shown, 1 for those to place before the others, 0.
        bounds: (left, bottom, right, top) that labels stay within.
        height: Height of a label in pixels.
        gaps: Pixels from the middle of each point to its label; 9 by default.
        obstacles: What labels should not cover: lines, other texts.

    Example:
        >>> place_labels([(50.0, 50.0)], [30.0], [2], (0, 0, 100, 100), 10.0)
        [Place(dx=9.0, dy=0.0, side='left')]
    """
    spaces = gaps or [GAP] * len(points)
    taken = [
        (x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2)
        for (x, y), gap in zip(points, spaces, strict=True)
    ]
    taken += obstacles
    found: list[Place | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda i: -importance[i]):
        ranked = [
            (_covered(box, taken, bounds), place, box)
            for place, box in _places(points[index], widths[index], height, spaces[index])
            if importance[index] == INDISPENSABLE or abs(place.dy) <= 1.2 * height
        ]
        cost, place, box = min(ranked, key=lambda entry: entry[0])
        if cost == 0 or importance[index] == INDISPENSABLE:
            found[index] = place
            taken.append(box)
    return found


def _places(
    point: tuple[float, float], width: float, height: float, gap: float
) -> Iterator[tuple[Place, Box]]:
    x, y = point
    for place in _offsets(gap, height):
        left = x + place.dx - {"left": 0.0, "center": width / 2, "right": width}[place.side]
        bottom = y + place.dy - height / 2
        yield place, (left, bottom, left + width, bottom + height)


def _offsets(gap: float, height: float) -> Iterator[Place]:
    yield Place(gap, 0.0, "left")
    yield Place(-gap, 0.0, "right")
    for far in (0.6, 1.0, 1.5, 2.0):
        dy = far * height
        if dy >= gap:
            yield Place(0.0, dy, "center")
            yield Place(0.0, -dy, "center")
        for side in (1.0, -1.0):
            for up in (dy, -dy):
                yield Place(side * gap * 0.9, up, "left" if side > 0 else "right")


def _covered(box: Box, taken: Sequence[Box], bounds: Box) -> float:
    """Area of ``box`` that lies on others or outside ``bounds``."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_shared(box, other) for other in taken) + 4 * (area - _shared(box, bounds))


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
