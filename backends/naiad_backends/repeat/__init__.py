"""Triton's `repeat` example backend: a decoupled model without a framework, for tests."""
