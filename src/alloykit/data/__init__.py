"""Splits of examples in a fixed order, from arrays, loaders, files and import paths."""
