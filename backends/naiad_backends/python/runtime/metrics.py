"""Metrics of a model's own: `MetricFamily` and `Metric`. The server has the values.

Changes wait here for a moment, so that many of them are one message. Source: Triton's Python
backend, whose rules hold: a metric is exported until its last object is deleted, and it can be used
as long as its family is there.
"""

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from queue import SimpleQueue
from typing import NamedTuple

from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Link, Plain, link


class MetricKind(IntEnum):
    """What a family counts, by Triton's names and numbers."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


_MetricKind = MetricKind

_ACTIONS = {
    "increment": (MetricKind.COUNTER, MetricKind.GAUGE),
    "set": (MetricKind.GAUGE,),
    "observe": (MetricKind.HISTOGRAM,),
    "value": (MetricKind.COUNTER, MetricKind.GAUGE),
}


class Metric:
    """One value of a family, or one histogram; made by `MetricFamily.Metric`.

    Metrics with equal names and labels share their value, over all instances and models.
    """

    def __init__(
        self, family: "MetricFamily", labels: Mapping[str, str], buckets: Sequence[float] | None
    ) -> None:
        self._family = weakref.ref(family)
        self._kind = family.kind
        self._way = family.way
        self._handle = next(_handles)
        bounds: Plain = None if buckets is None else [float(bound) for bound in buckets]
        UPDATES.flush()
        self._way.call("metric", self._handle, family.name, dict(labels), bounds)
        family.handles.add(self._handle)
        dropping = weakref.finalize(self, _drop_metric, self._way, family.handles, self._handle)
        dropping.atexit = False

    def increment(self, value: float) -> None:
        """Add to a counter (not less than 0) or a gauge. Raises TritonModelException."""
        number = self._number("increment", value)
        if self._kind is MetricKind.COUNTER and not number >= 0:
            raise TritonModelException(f"a counter cannot be incremented by {value}, only by >= 0")
        UPDATES.add(_Change(self._way, self._handle, "increment", number))

    def set(self, value: float) -> None:
        """Give a gauge another value. Raises TritonModelException."""
        UPDATES.add(_Change(self._way, self._handle, "set", self._number("set", value)))

    def observe(self, value: float) -> None:
        """Count a value in a histogram. Raises TritonModelException."""
        UPDATES.add(_Change(self._way, self._handle, "observe", self._number("observe", value)))

    def value(self) -> float:
        """What a counter or gauge has now; asks the server. Raises TritonModelException."""
        self._check("value")
        UPDATES.flush()
        found = self._way.call("metric_value", self._handle)
        return float(found) if isinstance(found, int | float) else 0.0

    def _number(self, action: str, value: float) -> float:
        self._check(action)
        try:
            if not isinstance(value, str | bytes):
                return float(value)
        except (TypeError, ValueError):
            pass
        raise TritonModelException(f"{action} needs a number, not {type(value).__name__}")

    def _check(self, action: str) -> None:
        if self._family() is None:
            raise TritonModelException(
                "the metric can no longer be used, because its MetricFamily has been deleted; keep"
                " the MetricFamily as long as its metrics"
            )
        if self._kind not in _ACTIONS[action]:
            raise TritonModelException(f"a {self._kind.name} has no {action}")


class MetricFamily:
    """Metrics of one name; the name is exported as it is."""

    MetricKind = MetricKind
    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: _MetricKind) -> None:
        """Make a family, or join the one of that name, whose kind must be the same.

        kind: `MetricFamily.COUNTER`, `GAUGE` or `HISTOGRAM`. Raises TritonModelException.
        """
        if not isinstance(name, str) or not isinstance(description, str):
            raise TritonModelException("name and description of a MetricFamily must be texts")
        if kind not in tuple(MetricKind):
            raise TritonModelException(
                f"{kind!r} is no kind; use MetricFamily.COUNTER, GAUGE or HISTOGRAM"
            )
        self.name = name
        self.kind = MetricKind(kind)
        self.way = link().bound()
        self.handles: set[int] = set()
        UPDATES.start()
        UPDATES.flush()
        self.way.call("metric_family", name, description, self.kind.name)
        dropping = weakref.finalize(self, _drop_family, self.way, self.handles, name)
        dropping.atexit = False

    def Metric(
        self,
        labels: Mapping[str, str] | None = None,
        buckets: Sequence[float] | None = None,
    ) -> "_Metric":
        """Make a metric, or join the one with these labels.

        buckets: ascending upper bounds; needed for a histogram, and for nothing else. A metric that
            is there keeps its own. Raises TritonModelException.
        """
        _check_labels(labels or {})
        if self.kind is MetricKind.HISTOGRAM:
            _check_buckets(buckets)
        elif buckets is not None:
            raise TritonModelException(f"buckets are for a HISTOGRAM, not for a {self.kind.name}")
        return _Metric(self, labels or {}, buckets)


_Metric = Metric
_handles = itertools.count(1)


def _check_labels(labels: Mapping[str, str]) -> None:
    if not isinstance(labels, Mapping):
        raise TritonModelException(f"labels must be a dict, not {type(labels).__name__}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TritonModelException(f"labels must be texts, not {name!r}: {value!r}")


def _check_buckets(buckets: Sequence[float] | None) -> None:
    if buckets is None or isinstance(buckets, str) or not len(buckets):
        raise TritonModelException("a HISTOGRAM needs buckets, a list of upper bounds")
    try:
        ascending = all(one < other for one, other in itertools.pairwise(map(float, buckets)))
    except (TypeError, ValueError):
        raise TritonModelException("buckets must be numbers") from None
    if not ascending:
        raise TritonModelException(f"buckets must ascend, not {list(buckets)}")


# -- what waits


class _Change(NamedTuple):
    """A change of a value."""

    way: Link
    handle: int
    action: str
    value: float

    def tell(self) -> None:
        self.way.tell("metric_update", self.handle, self.action, self.value)


class _End(NamedTuple):
    """The end of a metric, by its handle, or of a family, by its name."""

    way: Link
    what: str
    subject: int | str

    def tell(self) -> None:
        self.way.tell(self.what, self.subject)


def _drop_metric(way: Link, handles: set[int], handle: int) -> None:
    try:
        handles.remove(handle)
    except KeyError:
        return
    UPDATES.add(_End(way, "drop_metric", handle))


def _drop_family(way: Link, handles: set[int], name: str) -> None:
    for handle in sorted(handles):
        _drop_metric(way, handles, handle)
    UPDATES.add(_End(way, "drop_family", name))


class Updates:
    """Changes on their way to the server, in the order in which they were made.

    Concurrency: any thread may call all of it; `add` also from a destructor, at any moment, so it
    takes no lock.
    """

    def __init__(self, period_s: float = 0.1) -> None:
        """period_s: how long a change waits at most, once `start` was called."""
        self._period_s = period_s
        self._waiting: deque[_Change | _End] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._awake = False
        self._started = False
        # A destructor may change a metric while its own thread is in here.
        self._lock = threading.RLock()

    def start(self) -> None:
        """See to it that nothing waits for ever, also where nobody calls `flush`."""
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="naiad-metrics", daemon=True).start()

    def add(self, what: _Change | _End) -> None:
        """Say this soon."""
        self._waiting.append(what)
        if not self._awake:
            self._awake = True
            self._wakes.put(None)

    @property
    def waiting(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Say now all that was added before this call."""
        with self._lock:
            for what in _joined(self._taken()):
                what.tell()

    def _taken(self) -> Iterator[_Change | _End]:
        with suppress(IndexError):
            for _ in range(len(self._waiting)):
                yield self._waiting.popleft()

    def _run(self) -> None:
        while True:
            self._wakes.get()
            time.sleep(self._period_s)
            self._awake = False
            self.flush()


def _joined(waiting: Iterable[_Change | _End]) -> list[_Change | _End]:
    """The same in fewer messages: increments are added up, and a set replaces what came before."""
    joined: list[_Change | _End] = []
    places: dict[int, int] = {}
    for what in waiting:
        if isinstance(what, _Change) and what.action != "observe":
            place = places.setdefault(what.handle, len(joined))
            before = joined[place] if place < len(joined) else None
            if isinstance(before, _Change):
                if what.action == "increment":
                    what = before._replace(value=before.value + what.value)
                joined[place] = what
                continue
        joined.append(what)
    return joined


UPDATES = Updates()
"""Of this process. Whoever runs a model flushes it after each execute."""
