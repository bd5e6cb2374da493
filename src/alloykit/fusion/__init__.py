"""Learned heads over frozen members: a file a head, and the module that holds them all."""
