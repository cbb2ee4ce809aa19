"""An instance elsewhere that a test holds by the hand. It keeps the contract to the letter."""

from collections import deque
from collections.abc import Callable, Sequence

from naiad_backends.api import (
    Done,
    Execution,
    InstanceState,
    RemoteInstance,
    Request,
    Responder,
    Response,
)
from naiad_backends.errors import NaiadError, QueueFull, internal, unavailable

READY, RESTARTING, DOWN = InstanceState.READY, InstanceState.RESTARTING, InstanceState.DOWN

Handed = tuple[Sequence[Request], Sequence[Responder], Done]


class Distant(RemoteInstance):
    """Ends what it was handed when the test says so, or at once if it is `quick`.

    batches: the ids in each batch that came.  handed: those that have not ended.
    most: requests that may wait; 0 for any number.
    """

    def __init__(
        self, window: int = 1, quick: bool = False, most: int = 0, for_calls: int = 1
    ) -> None:
        self.batches: list[list[str]] = []
        self.handed: deque[Handed] = deque()
        self.quick = quick
        self.most = most
        self.reason = ""
        self._window = window
        self._for_calls = for_calls
        self._state = READY
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def window(self) -> int:
        return self._window

    @property
    def window_for_calls(self) -> int:
        return self._for_calls

    def refusal(self, waiting: int) -> QueueFull | None:
        full = self.most and waiting >= self.most
        return QueueFull(f"{waiting} wait already", 7) if full else None

    def trouble(self) -> str:
        return self.reason

    def watch(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        if self._state is not READY:
            done(None)
            return
        assert len(self.handed) < self._window
        if any(request.callers for request in requests):
            assert len(self.handed) < self._for_calls
        self.batches.append([request.id for request in requests])
        self.handed.append((requests, responders, done))
        if self.quick:
            self.end()

    def end(self, *responses: Response) -> None:
        """End the first batch, by one good response each if none are given."""
        requests, responders, done = self.handed.popleft()
        if responders and not responses:
            for responder in responders:
                responder.send(Response(), final=True)
        done(Execution(responses or [Response() for _ in requests]))

    def die(self, state: InstanceState = RESTARTING, begun: bool = True) -> None:
        """Die in the midst of the first batch, or just before it."""
        self._state = state
        outcome: NaiadError | None = unavailable("the process died") if begun else None
        for _, _, done in [*self.handed]:
            self.handed.popleft()
            done(outcome)
            outcome = None
        self._tell()

    def become(self, state: InstanceState) -> None:
        """Change the state when nothing is in flight."""
        assert not self.handed
        self._state = state
        self._tell()

    def put_off(self) -> None:
        """What it executes will be answered later; it wants another one meanwhile."""
        self._window += 1
        self._for_calls += 1
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def execute(self, requests: Sequence[Request]) -> Execution:
        raise internal("never called by the server")

    def stream(self, request: Request, responder: Responder) -> None:
        raise internal("never called by the server")

    def close(self) -> None:
        pass
