"""Predictions of several models -> one prediction: the rules, and the module that wraps members."""
