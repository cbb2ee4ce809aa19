"""For all versions."""

OFFSET = 3
