"""Averages of weights that validation data chooses: greedy, learned, along a line."""
