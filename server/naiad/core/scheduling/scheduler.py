"""What a model version needs of its scheduler, and the choice of one by the configuration.

A scheduler lives on the event loop and belongs to one loaded model version. It answers every
request that it accepted, and counts each of them in the version's statistics.
"""

from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from typing import Protocol

from naiad.core.responses import Part
from naiad_backends.api import Instance, Request, Response


class Scheduler(Protocol):
    """When and where the requests of one model version run."""

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and have not ended, in the queue or on an instance."""

    @property
    def pending(self) -> int:
        """Requests in the queue, which no instance has taken yet."""

    async def submit(self, request: Request, batch_size: int) -> Response:
        """Run a request that fits the model. Cancelling the call cancels the request; while it is
        queued it then never runs. Raises UNAVAILABLE for a request that the queue refuses."""

    def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        """Run a request that fits the model; its responses as they come, the last part final.
        Closing the iterator cancels the request."""

    def hurry(self) -> None:
        """Keep no request waiting for others to join it from now on."""

    async def drained(self) -> None:
        """Hurry, and wait until `in_flight` is 0. No new request may come meanwhile."""

    async def stop(self) -> None:
        """End the threads, after `drained`."""


class Resizable(Scheduler, Protocol):
    """A scheduler whose instances may change while it runs."""

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        """Take up instances at once, and give others no more work; one at least stays or comes.
        The coroutine ends when the others have finished what they run."""
