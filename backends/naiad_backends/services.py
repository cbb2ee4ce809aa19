"""What the server does for models: other models, their loading, metrics of their own.

The other direction of the contract: a backend may be given a `Services`. Without a server, as in a
check of files or a test of a backend, there is `Alone`.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence

from naiad_backends.api import Request, Response
from naiad_backends.errors import NaiadError, not_found, unavailable


class CustomMetrics(ABC):
    """Metrics that models make. Metrics of the same name and labels share one value.

    Concurrency: any thread may call all of it. An owner is whoever can end at once with all that it
    has made, such as a worker process; a handle is its own number for one metric.
    """

    @abstractmethod
    def family(self, owner: str, name: str, description: str, kind: str) -> None:
        """Make a family, or join the one that is there. kind: COUNTER, GAUGE or HISTOGRAM.

        Raises INVALID_ARG for a name that Prometheus does not allow, that is one of the server's
        own, or that is there with another kind.
        """

    @abstractmethod
    def drop_family(self, owner: str, name: str) -> None:
        """The owner has no use for a family any more."""

    @abstractmethod
    def metric(
        self,
        owner: str,
        handle: int,
        name: str,
        labels: Mapping[str, str],
        buckets: Sequence[float] | None,
    ) -> None:
        """Make a metric of a family, or join the one with these labels.

        buckets: ascending upper bounds, for histograms only. Raises INVALID_ARG.
        """

    @abstractmethod
    def drop_metric(self, owner: str, handle: int) -> None:
        """The owner has no use for a metric any more; with its last owner it disappears."""

    @abstractmethod
    def update(self, owner: str, handle: int, action: str, value: float) -> None:
        """Change a value. action: increment, set or observe. Raises INVALID_ARG."""

    @abstractmethod
    def value(self, owner: str, handle: int) -> float:
        """The value of a counter or gauge now. Raises INVALID_ARG."""

    @abstractmethod
    def forget(self, owner: str) -> None:
        """An owner has ended: drop all that it had."""


class Services(ABC):
    """Concurrency: coroutines run on `loop`; everything else may be called from any thread."""

    @property
    @abstractmethod
    def loop(self) -> asyncio.AbstractEventLoop:
        """The server's event loop, which runs."""

    @property
    @abstractmethod
    def metrics(self) -> CustomMetrics:
        """The metrics that models make."""

    @abstractmethod
    async def infer(self, request: Request) -> Response:
        """Run a request as if a client had sent it. Raises NaiadError. Cancelling cancels.

        The request may carry the trace of the one that led to it; its own is then a child of that.
        """

    @abstractmethod
    def stream(self, request: Request) -> AsyncGenerator[tuple[Response | None, bool], None]:
        """The same with any number of responses: each with whether it is the last; None for a last
        word without a response. Closing the iterator cancels."""

    @abstractmethod
    async def load_model(self, caller: str, name: str, parameters: Mapping[str, object]) -> None:
        """Load or reload a model and wait for it, as the model repository extension does. Raises
        NaiadError.

        caller: the model that asks, which cannot load itself while it is being loaded, nor a model
            that waits for it.
        """

    @abstractmethod
    async def unload_model(self, caller: str, name: str, unload_dependents: bool) -> None:
        """Take a model out of service. Raises NaiadError. caller: as for `load_model`."""

    @abstractmethod
    async def model_ready(self, name: str, version: str) -> bool:
        """Whether a model would take a request now. version: empty for any."""


class Alone(Services):
    """No server: an event loop on a thread of its own, no other models, and metrics that nobody
    reads."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._metrics = _Unread()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        # Most backends want none.
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                threading.Thread(target=run, name="naiad-alone", daemon=True).start()
            return self._loop

    @property
    def metrics(self) -> CustomMetrics:
        return self._metrics

    async def infer(self, request: Request) -> Response:
        raise _no_model(request.model_name)

    async def stream(self, request: Request) -> AsyncGenerator[tuple[Response | None, bool], None]:
        raise _no_model(request.model_name)
        yield None, True

    async def load_model(self, caller: str, name: str, parameters: Mapping[str, object]) -> None:
        raise unavailable("there is no server that could load a model")

    async def unload_model(self, caller: str, name: str, unload_dependents: bool) -> None:
        raise unavailable("there is no server that could unload a model")

    async def model_ready(self, name: str, version: str) -> bool:
        return False


def _no_model(name: str) -> NaiadError:
    return not_found(f"unknown model '{name}'", hint="there is no server with other models here")


class _Unread(CustomMetrics):
    def family(self, owner: str, name: str, description: str, kind: str) -> None:
        pass

    def drop_family(self, owner: str, name: str) -> None:
        pass

    def metric(
        self,
        owner: str,
        handle: int,
        name: str,
        labels: Mapping[str, str],
        buckets: Sequence[float] | None,
    ) -> None:
        pass

    def drop_metric(self, owner: str, handle: int) -> None:
        pass

    def update(self, owner: str, handle: int, action: str, value: float) -> None:
        pass

    def value(self, owner: str, handle: int) -> float:
        return 0.0

    def forget(self, owner: str) -> None:
        pass
