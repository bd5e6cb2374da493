"""Numbers in human units, rounded to what the test set can tell apart."""

from __future__ import annotations

import math
import re

from alloykit.types import Interval

IN_PERCENT = frozenset({"accuracy", "precision", "recall", "f1"})
LABELS = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "auroc": "AUROC",
    "f1": "F1",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "mse": "MSE",
}
NONE = "–"
LARGE = 20_000
"""From this many test examples on, a hundredth of a percent is more than rounding noise."""

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def label(metric: str) -> str:
    """A metric's name as it is read aloud.

    Example:
        >>> label("log_loss"), label("top_5")
        ('log loss', 'top 5')
    """
    return LABELS.get(metric, metric.replace("_", " "))


def score(value: float | None, metric: str, examples: int = 0, *, unit: bool = True) -> str:
    """A metric's value: percent for accuracy and its like, three decimals otherwise.

    Example:
        >>> score(0.93149, "accuracy", unit=False), score(0.23149, "log_loss")
        ('93.1', '0.231')
    """
    if value is None or math.isnan(value):
        return NONE
    if metric not in IN_PERCENT:
        return _plain(value)
    return f"{_decimals(100 * value, _places(examples))}{SPACE + '%' if unit else ''}"


def gain(value: float | None, metric: str, examples: int = 0, *, unit: bool = False) -> str:
    """A signed difference: in points for accuracy and its like.

    Example:
        >>> gain(0.0421, "accuracy"), gain(-0.0123, "log_loss")
        ('+4.2', '−0.012')
    """
    if value is None or math.isnan(value):
        return NONE
    text = score(abs(value), metric, examples, unit=False)
    sign = "±" if not any(c in "123456789∞" for c in text) else "+" if value > 0 else MINUS
    return f"{sign}{text}{SPACE + 'points' if unit and metric in IN_PERCENT else ''}"


def gain_range(interval: Interval, metric: str, examples: int = 0) -> str:
    """The ends of a difference's interval: "+3.1 to +5.3"."""
    return f"{gain(interval.low, metric, examples)} to {gain(interval.high, metric, examples)}"


def score_range(interval: Interval, metric: str, examples: int = 0) -> str:
    """The ends of a value's interval: "92.0 to 94.2 %"."""
    low = score(interval.low, metric, examples, unit=False)
    return f"{low} to {score(interval.high, metric, examples)}"


def level(interval: Interval) -> str:
    """The coverage of an interval: "95 %"."""
    return f"{100 * interval.level:g}{SPACE}%"


def p_value(value: float | None) -> str:
    """A probability of chance, never as zero.

    Example:
        >>> p_value(0.0312), p_value(None)
        ('0.031', '–')
    """
    if value is None or math.isnan(value):
        return NONE
    return f"<{SPACE}0.001" if value < 0.001 else f"{value:.3f}"


def p_equation(value: float) -> str:
    """A probability of chance with its letter: "p = 0.031", "p < 0.001"."""
    text = p_value(value)
    return f"p{SPACE}{text}" if text.startswith("<") else f"p{SPACE}={SPACE}{text}"


def sentence(text: str) -> str:
    """With a capital at its start and a stop at its end.

    Example:
        >>> sentence("fitted on validation"), sentence("Is it?")
        ('Fitted on validation.', 'Is it?')
    """
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def breaking(text: str) -> str:
    """With plain spaces, for where text is searched, cut or wrapped by others: a terminal."""
    return text.replace(SPACE, " ")


def unbroken(text: str) -> str:
    """Numbers stay with their units on one line: the opposite of ``breaking``.

    Example:
        >>> unbroken("95 % of 3 points, p < 0.001").count(SPACE)
        4
    """
    return re.sub(r"(?<=\d) (?=%|points?\b)|(?<=\bp) (?=[<=] )|(?<=[<=]) (?=\d)", SPACE, text)


def duration(seconds: float | None, *, short: bool = False) -> str:
    """Seconds with three digits and the unit that suits them; ``short`` drops closing zeros.

    Example:
        >>> duration(0.00123).replace(SPACE, " "), duration(95).replace(SPACE, " ")
        ('1.23 ms', '95.0 s')
    """
    if seconds is None or math.isnan(seconds):
        return NONE
    if seconds >= 120:
        return f"{_three(seconds / 60, short)}{SPACE}min"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor:
            return f"{_three(seconds / factor, short)}{SPACE}{unit}"
    return f"{_three(seconds / 1e-9, short)}{SPACE}ns"


def size(count: float | None) -> str:
    """Bytes in powers of a thousand.

    Example:
        >>> size(45_234_000).replace(SPACE, " "), size(12).replace(SPACE, " ")
        ('45.2 MB', '12 B')
    """
    return NONE if count is None else _thousands(count, ("B", "kB", "MB", "GB", "TB"))


def quantity(count: float | None) -> str:
    """A large count, shortened.

    Example:
        >>> quantity(11_173_962).replace(SPACE, " "), quantity(812)
        ('11.2 M', '812')
    """
    return NONE if count is None else _thousands(count, ("", "k", "M", "G", "T")).strip()


def times(ratio: float) -> str:
    """How many times as much.

    Example:
        >>> times(3.97), times(1.34), times(24.6)
        ('4×', '1.3×', '25×')
    """
    text = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    return f"{text.removesuffix('.0')}×"


def _places(examples: int) -> int:
    return 2 if examples >= LARGE else 1


def _decimals(value: float, places: int) -> str:
    text = f"{value:,.{places}f}"
    negative = text.startswith("-") and any(c in "123456789" for c in text)
    return f"{MINUS}{text[1:]}" if negative else text.removeprefix("-")


def _plain(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    small = 0 < abs(value) < 0.001
    if small:
        return f"{value:.2g}".replace("-", MINUS)
    places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return _decimals(value, places)


def _thousands(count: float, units: tuple[str, ...]) -> str:
    value, index = float(count), 0
    while value >= 999.5 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return f"{_three(value, index == 0)}{SPACE}{units[index]}"


def _three(value: float, short: bool) -> str:
    return f"{value:.3g}" if short else f"{value:#.3g}".removesuffix(".")
