"""Which requests are traced, and the record of one that is.

Lives on the event loop. It knows when a trace has ended, not what is in it: whoever handles a
request adds its marks. Settings are `tracesettings`' matter, files `tracefiles`'.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count

import numpy as np

from naiad.core.stats import Phases
from naiad.core.tracefiles import Record, TensorRecord, TraceFiles
from naiad.core.tracesettings import TraceLevel, TraceSettings, Value, read_changes
from naiad_backends.api import Request, Response, Tensor, Trace

logger = logging.getLogger(__name__)


class RequestTrace(Trace):
    """The trace of one request. It has ended when all who hold it have let go."""

    __slots__ = ("_ended", "_holders", "_levels", "beget", "record")

    def __init__(
        self, levels: Iterable[TraceLevel], record: Record, ended: Callable[[Record], None]
    ) -> None:
        """Held once, by whoever began it.  ended: called with the record at the end."""
        self._levels = frozenset(levels)
        self.record = record
        self._ended = ended
        self._holders = 1
        self.beget: Callable[[Request, str], RequestTrace] | None = None
        """Begins the trace of a request that is made for this one, given the version that runs it;
        None if there is to be none. Whoever calls it has to release that trace."""

    def mark(self, name: str, ns: int = 0) -> None:
        if TraceLevel.TIMESTAMPS in self._levels and self._holders:
            self.record.marks.append((name, ns or time.perf_counter_ns()))

    def tensors(self, activity: str, tensors: Iterable[Tensor]) -> None:
        if TraceLevel.TENSORS in self._levels and self._holders:
            for tensor in tensors:
                # A copy: the memory may be the client's, who may use it for other things soon.
                array = np.array(tensor.numpy(), order="C")
                self.record.tensors.append(
                    TensorRecord(activity, tensor.name, tensor.datatype, array)
                )

    def hold(self) -> None:
        """One more has to let go before the trace ends."""
        self._holders += 1

    def release(self) -> None:
        """Let go. What is marked after the last one has done so is lost."""
        self._holders -= 1
        if not self._holders:
            self._ended(self.record)


@contextlib.contextmanager
def begotten(parent: Trace | None, request: Request, version: str) -> Iterator[None]:
    """The trace of a request from its beginning to its end, if that is made for a traced one."""
    trace = None
    if isinstance(parent, RequestTrace) and parent.beget is not None:
        trace = parent.beget(request, version)
    if trace is None:
        yield
        return
    trace.mark("REQUEST_START")
    try:
        yield
    finally:
        trace.mark("REQUEST_END")
        trace.release()


def executed(
    trace: Trace, enqueued: int, phases: Phases | None, response: Response | None = None
) -> None:
    """Note the times of a request's execution, and its only response.

    phases: None if it was never executed.  response: None if there are many, or none.
    """
    trace.mark("QUEUE_START", enqueued)
    if phases is not None:
        trace.mark("COMPUTE_START", phases.start)
        trace.mark("COMPUTE_INPUT_END", phases.compute_start)
        trace.mark("COMPUTE_OUTPUT_START", phases.compute_end)
        trace.mark("COMPUTE_END", phases.end)
    if response is not None:
        responded(trace, response)


def responded(trace: Trace, response: Response, ns: int = 0) -> None:
    """Note a response as the model gave it.  ns: when, by `time.perf_counter_ns()`; 0 is now."""
    trace.mark("INFER_RESPONSE_COMPLETE", ns)
    trace.tensors("TENSOR_BACKEND_OUTPUT", response.outputs)


class Sampler:
    """Picks the requests to trace by one set of settings, and groups their traces into files."""

    def __init__(self, settings: TraceSettings, files: TraceFiles) -> None:
        self.settings = settings
        """The settings with `trace_count` as it is now."""
        self.running = 0
        """Traces that were begun and have not ended."""
        self._files = files
        self._seen = 0
        self._retired = False
        self._group: list[Record] = []

    @property
    def active(self) -> bool:
        """Whether a request can be picked."""
        return self.settings.active and not self._retired

    def pick(self) -> bool:
        """Count one more request and say whether to trace it; then `collect` has to follow."""
        if not self.active:
            return False
        self._seen += 1
        if self._seen % self.settings.trace_rate:
            return False
        left = self.settings.trace_count
        if left > 0:
            self.settings = self.settings.changed({"trace_count": left - 1})
        self.running += 1
        return True

    def collect(self, record: Record) -> None:
        """One of the picked requests has ended."""
        self.running -= 1
        self._group.append(record)
        full = len(self._group) >= (self.settings.log_frequency or 1)
        if full or not (self.running or self.active):
            self.flush()

    def retire(self) -> None:
        """Pick no more. What is still running goes into a file when the last of it has ended."""
        self._retired = True
        if not self.running:
            self.flush()

    def flush(self) -> None:
        """Write what has ended."""
        if self._group:
            self._files.write(self._group, numbered=self.settings.log_frequency > 0)
            self._group = []


class Tracing:
    """The settings of the server and those of models, and the traces that follow from them.

    Models without a setting of their own are sampled together, each other one for itself. An update
    begins to count requests anew where it changes something.
    """

    def __init__(self, settings: TraceSettings) -> None:
        """Raises INVALID_ARG for a file that cannot be written."""
        self.on = settings.active
        """Whether any request can be traced now: what the hot path asks."""
        self._start = settings
        self._files = TraceFiles(settings.trace_file)
        self._server = Sampler(settings, self._files)
        self._models: dict[str, Sampler] = {}
        self._own: dict[str, frozenset[str]] = {}
        self._retired: list[Sampler] = []
        self._numbers = count(1)

    def settings(self, model: str = "") -> TraceSettings:
        """What holds for a model, or for all models that have nothing of their own."""
        return self._models.get(model, self._server).settings

    def update(self, changes: Mapping[str, object], model: str = "") -> None:
        """Change some settings of a model or of the server, all of them or none.

        A value that is taken back is the server's again for a model, that of the start for the
        server. Raises as `read_changes`.
        """
        given = read_changes(changes)
        if not given:
            return
        if model:
            own = self._values(model)
            own.update((name, value) for name, value in given.items() if value is not None)
            self._set(model, {name: own[name] for name in own if given.get(name, ...) is not None})
        else:
            values = {
                name: getattr(self._start, name) if value is None else value
                for name, value in given.items()
            }
            self._retire(self._server)
            self._server = Sampler(self._server.settings.changed(values), self._files)
            for name in list(self._models):
                self._set(name, self._values(name))
        self._look()
        if self.settings(model).trace_level and not self._start.trace_file:
            logger.warning("nothing is traced without --trace-config triton,file=<path>")

    def begin(self, request: Request, version: str) -> RequestTrace | None:
        """The trace of a request that is about to run, if it is to have one.

        version: the one of its model that runs it. The caller has to release the trace.
        """
        sampler = self._models.get(request.model_name, self._server)
        if not sampler.pick():
            return None
        self._look()
        return self._made(sampler, request, version, 0)

    def _made(self, sampler: Sampler, request: Request, version: str, parent: int) -> RequestTrace:
        number = next(self._numbers)
        record = Record(number, request.model_name, version, request.id, parent=parent)
        trace = RequestTrace(sampler.settings.trace_level, record, sampler.collect)
        trace.beget = partial(self._child, sampler, number)
        trace.tensors("TENSOR_QUEUE_INPUT", request.inputs.values())
        request.trace = trace
        return trace

    def _child(self, sampler: Sampler, parent: int, request: Request, version: str) -> RequestTrace:
        sampler.running += 1
        return self._made(sampler, request, version, parent)

    def close(self) -> None:
        """Trace nothing more and write what has ended; returns when it is written."""
        self.on = False
        for sampler in (self._server, *self._models.values(), *self._retired):
            sampler.retire()
            sampler.flush()
        self._files.close()

    def _values(self, model: str) -> dict[str, Value]:
        """A model's own settings as they are now."""
        names = self._own.get(model, ())
        return {name: getattr(self._models[model].settings, name) for name in names}

    def _set(self, model: str, own: Mapping[str, Value]) -> None:
        """Sample a model by the server's settings and its own."""
        if model in self._models:
            self._retire(self._models.pop(model))
        self._own[model] = frozenset(own)
        if own:
            self._models[model] = Sampler(self._server.settings.changed(own), self._files)

    def _retire(self, sampler: Sampler) -> None:
        sampler.retire()
        self._retired = [one for one in (*self._retired, sampler) if one.running]

    def _look(self) -> None:
        self.on = any(one.active for one in (self._server, *self._models.values()))
