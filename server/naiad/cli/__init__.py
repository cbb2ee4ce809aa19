"""The `naiad` command: serve, check, fetch."""

from naiad.cli.main import main

__all__ = ["main"]
