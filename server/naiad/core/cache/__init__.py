"""Answers that are kept for equal requests: options, keys, and the stores that hold them."""
