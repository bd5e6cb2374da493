"""The names of Flower that are used here; without Flower, an error that says what to install."""

from __future__ import annotations

from alloykit.errors import MissingExtra

try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Message,
        MessageType,
        MetricRecord,
        RecordDict,
    )
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result, Strategy
except ImportError as error:
    raise MissingExtra(
        f"alloykit.plugins.flower needs the package flwr: pip install 'alloykit[flower]'. ({error})"
    ) from error

__all__ = [
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "Grid",
    "Message",
    "MessageType",
    "MetricRecord",
    "RecordDict",
    "Result",
    "Strategy",
]
