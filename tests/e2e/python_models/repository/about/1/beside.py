"""Imported by model.py."""

SHAPE = [1, 2]
