"""The one error of the harness. Knows nothing of what went wrong where."""


class BenchmarkError(Exception):
    """A measurement, or what it needs, could not be had; the text says what to do about it."""
