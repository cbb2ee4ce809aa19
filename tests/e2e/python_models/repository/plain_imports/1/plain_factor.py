"""Beside the model."""

FACTOR = 10
