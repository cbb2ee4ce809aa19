"""Naiad: a multi-model inference server that speaks Triton's protocol."""

from importlib.metadata import version

__version__ = version("naiad")
