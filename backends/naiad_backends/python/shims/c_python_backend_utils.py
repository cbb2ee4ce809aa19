"""Triton's inner module; here it is the same as `triton_python_backend_utils`."""

from naiad_backends.python.runtime.pb_utils import *  # noqa: F403
