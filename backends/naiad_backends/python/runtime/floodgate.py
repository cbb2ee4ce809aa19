"""What a worker logs, before it is sent: a flood is cut here, where it costs the server nothing."""

import threading
import time

from naiad_backends.child.lines import Gate, clipped, weight


class Floodgate:
    """Any thread may use it. Details have a gate of their own, because the server may not want
    any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate = Gate()
        self._of_details = Gate()

    def admit(self, severity: str, text: str) -> str | None:
        """The text as it may be sent; None for one that may not."""
        text = clipped(text)
        gate = self._of_details if severity == "VERBOSE" else self._gate
        with self._lock:
            return text if gate.admits(time.monotonic(), weight(text)) else None

    def take_left_out(self) -> int:
        """How many texts were not admitted since the last call."""
        if not self._gate.left_out:
            return 0
        with self._lock:
            return self._gate.take_left_out()
