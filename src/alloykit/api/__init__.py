"""The public verbs: wiring of the rooms below, no arithmetic."""

from alloykit.api.choosing import SoupResult, soup
from alloykit.api.ensembling import ensemble
from alloykit.api.inputs import Models
from alloykit.api.judging import compare, diagnose, inspect, methods
from alloykit.api.merging import average, interpolate, merge, save_checkpoint

__all__ = [
    "Models",
    "SoupResult",
    "average",
    "compare",
    "diagnose",
    "ensemble",
    "inspect",
    "interpolate",
    "merge",
    "methods",
    "save_checkpoint",
    "soup",
]
