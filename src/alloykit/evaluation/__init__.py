"""Predict once, then score: metrics, calibration, uncertainty and costs of pooled outputs."""
