"""Triton's `python` backend: models that are a `model.py`, run in processes of their own."""
