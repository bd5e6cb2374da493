"""alloykit combines trained PyTorch models and measures which combination is worth shipping."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it. Imported on first use, so that `import alloykit` and
# `alloykit --help` stay fast.
_HOMES = {
    "AlloyError": "alloykit.errors",
    "Comparison": "alloykit.comparison.comparing",
    "Ensemble": "alloykit.ensembling.module",
    "ExponentialMovingAverage": "alloykit.training.averages",
    "LastKAverage": "alloykit.training.averages",
    "StochasticWeightAverage": "alloykit.training.averages",
    "aggregate": "alloykit.api.aggregating",
    "average": "alloykit.api.merging",
    "compare": "alloykit.api.judging",
    "diagnose": "alloykit.api.judging",
    "distill": "alloykit.api.distilling",
    "ensemble": "alloykit.api.ensembling",
    "federate": "alloykit.api.federating",
    "fuse": "alloykit.api.fusing",
    "inspect": "alloykit.api.judging",
    "interpolate": "alloykit.api.merging",
    "load_exported": "alloykit.checkpoints.exporting",
    "merge": "alloykit.api.merging",
    "methods": "alloykit.api.judging",
    "open_checkpoint": "alloykit.checkpoints.opening",
    "retrain": "alloykit.api.retraining",
    "save_checkpoint": "alloykit.api.merging",
    "save_exported": "alloykit.checkpoints.exporting",
    "soup": "alloykit.api.choosing",
    "stats": "alloykit.api.statistics",
    "tune": "alloykit.api.choosing",
    "update_batch_norm": "alloykit.evaluation.batch_norm",
}

if TYPE_CHECKING:
    from alloykit.api.aggregating import aggregate
    from alloykit.api.choosing import soup, tune
    from alloykit.api.distilling import distill
    from alloykit.api.ensembling import ensemble
    from alloykit.api.federating import federate
    from alloykit.api.fusing import fuse
    from alloykit.api.judging import compare, diagnose, inspect, methods
    from alloykit.api.merging import average, interpolate, merge, save_checkpoint
    from alloykit.api.retraining import retrain
    from alloykit.api.statistics import stats
    from alloykit.checkpoints.exporting import load_exported, save_exported
    from alloykit.checkpoints.opening import open_checkpoint
    from alloykit.comparison.comparing import Comparison
    from alloykit.ensembling.module import Ensemble
    from alloykit.errors import AlloyError
    from alloykit.evaluation.batch_norm import update_batch_norm
    from alloykit.training.averages import (
        ExponentialMovingAverage,
        LastKAverage,
        StochasticWeightAverage,
    )

__all__ = [
    "AlloyError",
    "Comparison",
    "Ensemble",
    "ExponentialMovingAverage",
    "LastKAverage",
    "StochasticWeightAverage",
    "aggregate",
    "average",
    "compare",
    "diagnose",
    "distill",
    "ensemble",
    "federate",
    "fuse",
    "inspect",
    "interpolate",
    "load_exported",
    "merge",
    "methods",
    "open_checkpoint",
    "retrain",
    "save_checkpoint",
    "save_exported",
    "soup",
    "stats",
    "tune",
    "update_batch_norm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alloykit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
