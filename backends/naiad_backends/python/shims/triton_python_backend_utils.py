"""The module that a `model.py` imports, under Triton's name."""

from naiad_backends.python.runtime.pb_utils import *  # noqa: F403
