"""A Flower app: digits of several clients, one model."""
