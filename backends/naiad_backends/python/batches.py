"""What a worker has in hand: batches that it was sent, and the ends of their requests.

Holds what comes back against what was sent, so that a damaged worker is found out. Knows no
processes and no clock but the one that numbers executions.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from naiad_backends.api import Done, Execution, Request, Responder, Response
from naiad_backends.errors import NaiadError, internal
from naiad_backends.python.runtime import heads
from naiad_backends.python.runtime.parcel import Unpacker
from naiad_backends.python.wire import Reader

_OF_STREAMS = frozenset((heads.AGAIN, heads.STREAM))
_OF_OTHERS = frozenset((heads.OUTPUTS, heads.ERROR, heads.AGAIN, heads.LATER))
"""What may become of a request of a decoupled model, and of others."""


class Batch:
    """Requests that the worker has.

    open: those that get responses beside the result.  early: such responses of a model that is not
        decoupled, which came before it.  sent: to the worker.  begun: something has come back.
    """

    __slots__ = ("begun", "done", "early", "execution", "open", "requests", "responders", "sent")

    def __init__(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        """As `RemoteInstance.begin`."""
        self.requests = requests
        self.responders = responders
        self.done: Done | None = done
        self.open = set(range(len(responders)))
        self.early: dict[int, Response] = {}
        self.sent = True
        self.begun = False
        self.execution: Execution | None = None

    def end(self, result: Execution | NaiadError | None) -> None:
        """Tell what became of it. Streams that are open go on."""
        for index, request in enumerate(self.requests):
            if index not in self.open:
                request.on_cancel = None
        done, self.done = self.done, None
        if done is not None:
            done(result)

    def fail(self, error: NaiadError) -> None:
        """The same, with all streams that are open."""
        for index in self.open if self.responders else ():
            self.responders[index].send(Response(error=error), True)
        self.open = set()
        self.end(error)


class Batches:
    """Those of one worker. A worker executes them in the order in which it was sent them."""

    def __init__(self, reader: Reader, ended: Callable[[int], None]) -> None:
        """reader: of its responses.  ended: called when all streams of a batch have ended."""
        self.deferred = 0
        """Batches that were executed, and which a response sender of the model will answer."""
        self._reader = reader
        self._ended = ended
        self._number = 0
        self._all: dict[int, Batch] = {}
        self._flying: dict[int, Batch] = {}

    def add(self, batch: Batch) -> int:
        """Its number, now that the worker is sent it."""
        self._number = number = self._number + 1
        self._all[number] = self._flying[number] = batch
        return number

    def requests(self, number: int) -> tuple[Sequence[Request], bool]:
        """The requests of a batch, and whether it still is to be executed, or is now; none if it
        has ended."""
        batch = self._all.get(number)
        return (batch.requests if batch else ()), number in self._flying

    def first(self) -> int:
        """The batch that is executed now; 0 if there is none."""
        return next(iter(self._flying), 0)

    # -- what comes back; all of it raises ValueError, TypeError or KeyError for what cannot be

    def result(
        self, number: int, start: int, begin: int, end: int, results: Any, unpacker: Unpacker
    ) -> tuple[Batch, Execution | NaiadError | None]:
        """What the execution of a batch gave; None if a response sender has still to answer."""
        if number != self.first():
            raise ValueError(f"the result of batch {number}, which is not what it executes")
        if not 0 < start <= begin <= (end or begin) <= time.perf_counter_ns():
            raise ValueError(f"a batch ran from {start} over {begin} to {end}")
        batch = self._flying.pop(number)
        if isinstance(results, str):
            del self._all[number]
            return batch, internal(results)
        read = self._reader.response
        responses = [read(head, unpacker) for head in results]
        if len(responses) != len(batch.requests):
            raise ValueError(f"{len(responses)} results for {len(batch.requests)} requests")
        execution = Execution(responses, begin, end)
        for index, head in enumerate(results):
            kind = head[0]
            if kind not in (_OF_STREAMS if batch.responders else _OF_OTHERS):
                raise ValueError(f"a result of kind {kind}")
            if kind == heads.LATER:
                self._defer(batch, index, responses)
            elif kind == heads.AGAIN:
                batch.open.discard(index)
        if batch.open and not batch.responders:
            batch.execution = execution
            self.deferred += 1
            return batch, None
        self._forget(number, batch)
        return batch, execution

    def _defer(self, batch: Batch, index: int, responses: list[Response]) -> None:
        early = batch.early.pop(index, None)
        if early is None:
            batch.open.add(index)
        else:
            responses[index] = early

    def part(self, number: int, index: int, head: Any, final: bool, unpacker: Unpacker) -> None:
        """A response that a sender gave."""
        batch = self._all.get(number)
        if batch is None:
            return
        if index not in range(len(batch.requests)):
            raise ValueError(f"a response to request {index} of {len(batch.requests)}")
        batch.begun = True
        response = None if head is None else self._reader.response(head, unpacker)
        if batch.responders:
            if index not in batch.open:
                raise ValueError(f"a response to request {index} after its end")
            # The server may have ended the stream itself.
            with contextlib.suppress(NaiadError):
                batch.responders[index].send(response, final)
            if final:
                batch.requests[index].on_cancel = None
                batch.open.discard(index)
                self._forget(number, batch)
        elif response is not None:
            self._late(number, batch, index, response)

    def _late(self, number: int, batch: Batch, index: int, response: Response) -> None:
        """A sender of a model that is not decoupled has answered, maybe before its execution has
        ended."""
        execution = batch.execution
        if execution is None:
            batch.early[index] = response
            return
        if index not in batch.open:
            raise ValueError(f"a second response to request {index}")
        responses = list(execution.responses)
        responses[index] = response
        execution.responses = responses
        batch.open.discard(index)
        if not batch.open:
            self.deferred -= 1
            self._forget(number, batch)
            batch.end(execution)

    def _forget(self, number: int, batch: Batch) -> None:
        if not batch.open and number not in self._flying and number in self._all:
            del self._all[number]
            if batch.responders:
                self._ended(number)

    # -- the end of the worker

    def lose(self, error: NaiadError) -> None:
        """The worker has ended. What it has begun fails; the rest can run elsewhere."""
        flying = list(self._flying.values())
        running = flying[0] if flying else None
        for batch in list(self._all.values()):
            if batch in flying and not batch.begun and not (batch is running and batch.sent):
                batch.end(None)
            else:
                batch.fail(error)
