"""Imported by model.py, in a package."""

from ..beside import SHAPE


def answer():
    return sum(SHAPE)
