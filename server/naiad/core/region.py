"""A region of memory that a client has registered, whatever kind of memory it is.

Knows nothing of requests, files and drivers.
"""

from abc import ABC, abstractmethod
from typing import ClassVar


class Region(ABC):
    """What the server keeps of a registered region: a way to copy from it and into it.

    The memory is the client's, who may change, shrink or free it at any time. So nothing reads it
    in place: what was copied stays as it was checked.

    name, size: as registered; the size in bytes.
    users: requests that use it now.  leaving: unregistered, but still in use.
    """

    quick: ClassVar[int]
    """Bytes that are copied on the event loop; more of them go to a thread."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.users = 0
        self.leaving = False

    @abstractmethod
    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`, plain bytes, from `offset` on. On any thread.

        The range lies inside the region. Raises INVALID_ARG if the client took its memory away.
        """

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Put `data`, plain bytes, at `offset`. As `read`; UNAVAILABLE if there is no room."""
