"""Tensors of several models -> one tensor: one small pure function a method."""
