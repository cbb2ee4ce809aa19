"""The `naiad` command: serve, check, fetch, init."""

from naiad.cli.main import main

__all__ = ["main"]
