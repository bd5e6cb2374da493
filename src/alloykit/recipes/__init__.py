"""Recipes: a merge written down as YAML, in the form that mergekit's users write."""
