"""Units brought into one order: permutation groups of a model, found, proved and matched."""
