"""Stores of named tensors: open, read piece by piece, match and write, without running any code."""
