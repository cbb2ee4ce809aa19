"""The `identity` backend: every output echoes an input."""
