"""Waiting that ends early once nobody wants the answer: for models that are slow on purpose.

Knows nothing of requests: it is told how to ask.
"""

import time
from collections.abc import Callable

_SLICE_S = 0.02
"""How often it asks, in seconds."""


def pause(seconds: float, abandoned: Callable[[], bool]) -> None:
    """Sleep for so long, or until `abandoned` says that there is no need; asked every 20 ms."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not abandoned():
        time.sleep(min(left, _SLICE_S))
