"""What a worker prints, on its way into the server's log."""

import asyncio
import logging
import os

_READ = 65_536


class Output:
    """Lines of one worker after the other, for the same instance."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """name: of the instance, which stands in front of each line."""
        self._loop = loop
        self._logger = logging.getLogger(name)
        self._rest = b""

    def read(self, descriptor: int) -> None:
        """Read from here until the other end is closed. On the event loop."""
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read, descriptor)

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._logger.info("%s", line.decode("utf-8", "replace"))
