"""One thread, and how many examples hypothesis draws: HYPOTHESIS_PROFILE=dev, ci or nightly."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=20, deadline=None, suppress_health_check=slow)
settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=slow
)
settings.register_profile("nightly", max_examples=500, deadline=None, suppress_health_check=slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

torch.set_num_threads(1)
