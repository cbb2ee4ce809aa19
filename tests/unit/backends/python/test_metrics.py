"""Metrics of a model: what is refused, what is said to the server and when, who outlives whom."""

import gc
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.python.fake_link import FakeLink, Message, connected

from naiad_backends.python.runtime import metrics
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Plain
from naiad_backends.python.runtime.metrics import (
    Metric,
    MetricFamily,
    MetricKind,
    Updates,
    _Change,
)


class Still(Updates):
    """Nothing is said before a flush."""

    def start(self) -> None:
        pass


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLink]:
    monkeypatch.setattr(metrics, "UPDATES", Still())
    link = FakeLink(lambda what, *_: 42.0 if what == "metric_value" else None)
    with connected(link):
        yield link


def counter(name: str = "requests") -> MetricFamily:
    return MetricFamily(name, "Requests", MetricFamily.COUNTER)


def said(link: FakeLink, *names: str) -> list[Message]:
    """What was said by now of these things; handles as they are."""
    metrics.UPDATES.flush()
    return [message for message in link.said if message[0] in names]


def test_a_family_and_its_metrics_are_made_at_once(link: FakeLink) -> None:
    family = MetricFamily(name="a", description="b", kind=MetricFamily.GAUGE)
    one = family.Metric(labels={"x": "1"})
    two = family.Metric()
    histogram = MetricFamily("h", "", MetricFamily.HISTOGRAM)
    three = histogram.Metric({"x": "1"}, buckets=[0.1, 1, 10])
    assert all(isinstance(metric, Metric) for metric in (one, two, three))
    handles = [message[1] for message in link.said if message[0] == "metric"]
    assert len(set(handles)) == 3
    assert link.said == [
        ("metric_family", "a", "b", "GAUGE"),
        ("metric", handles[0], "a", {"x": "1"}, None),
        ("metric", handles[1], "a", {}, None),
        ("metric_family", "h", "", "HISTOGRAM"),
        ("metric", handles[2], "h", {"x": "1"}, [0.1, 1.0, 10.0]),
    ]


def test_many_increments_are_one_message(link: FakeLink) -> None:
    family = counter()
    one, two = family.Metric({"n": "1"}), family.Metric({"n": "2"})
    handles = [message[1] for message in link.said if message[0] == "metric"]
    for _ in range(1000):
        one.increment(1)
        two.increment(0.5)
    assert said(link, "metric_update") == [
        ("metric_update", handles[0], "increment", 1000.0),
        ("metric_update", handles[1], "increment", 500.0),
    ]


def test_observations_are_said_one_by_one(link: FakeLink) -> None:
    family = MetricFamily("h", "", MetricFamily.HISTOGRAM)
    metric = family.Metric(buckets=(1.0,))
    metric.observe(1)
    metric.observe(1)
    assert [message[2:] for message in said(link, "metric_update")] == [("observe", 1.0)] * 2


def test_a_value_is_asked_for_after_what_came_before(link: FakeLink) -> None:
    family = counter()
    metric = family.Metric()
    metric.increment(2)
    assert metric.value() == 42.0
    assert [message[0] for message in link.said][-2:] == ["metric_update", "metric_value"]


def test_changes_do_not_wait_for_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "UPDATES", Updates(0.001))
    told = threading.Event()

    class Telling(FakeLink):
        def tell(self, what: str, *arguments: Plain) -> None:
            told.set()

    with connected(Telling()):
        family = counter()
        metric = family.Metric()
        metric.increment(1)
        assert told.wait(30)


def test_the_last_object_of_a_metric_takes_it_along(link: FakeLink) -> None:
    family = counter()
    metric = family.Metric()
    handle = link.said[-1][1]
    metric.increment(1)
    assert said(link, "drop_metric") == []
    metric.increment(1)
    del metric
    gc.collect()
    assert said(link, "metric_update", "drop_metric") == [
        ("metric_update", handle, "increment", 1.0),
        ("metric_update", handle, "increment", 1.0),
        ("drop_metric", handle),
    ]


def test_a_family_must_outlive_its_metrics(link: FakeLink) -> None:
    family = counter()
    metric = family.Metric()
    handle = link.said[-1][1]
    del family
    gc.collect()
    with pytest.raises(TritonModelException, match="MetricFamily has been deleted"):
        metric.increment(1)
    with pytest.raises(TritonModelException, match="MetricFamily has been deleted"):
        metric.value()
    dropped = [("drop_metric", handle), ("drop_family", "requests")]
    assert said(link, "metric_update", "drop_metric", "drop_family") == dropped
    del metric
    gc.collect()
    assert said(link, "drop_metric", "drop_family") == dropped


def test_a_dropped_family_is_gone_before_the_next_is_made(link: FakeLink) -> None:
    family = counter()
    del family
    gc.collect()
    again = MetricFamily("requests", "", MetricFamily.GAUGE)
    assert [message[0] for message in link.said] == [
        "metric_family",
        "drop_family",
        "metric_family",
    ]
    assert again.kind is MetricKind.GAUGE


def test_a_metric_that_the_server_refuses_leaves_nothing() -> None:
    def refuse(what: str, *_: object) -> None:
        if what == "metric":
            raise TritonModelException("label")

    link = FakeLink(refuse)
    with connected(link):
        family = counter()
        with pytest.raises(TritonModelException, match="label"):
            family.Metric({"le": "1"})
        gc.collect()
        assert said(link, "drop_metric") == []


def test_a_destructor_may_come_while_its_thread_flushes(link: FakeLink) -> None:
    family = counter()
    kept = [family.Metric({"n": str(n)}) for n in range(3)]

    class Dropping(FakeLink):
        def tell(self, what: str, *arguments: Plain) -> None:
            super().tell(what, *arguments)
            if kept:
                kept.pop()
                other.increment(1)
                metrics.UPDATES.flush()

    with connected(Dropping()) as _:
        second = counter("other")
        other = second.Metric()
        other.increment(1)
        metrics.UPDATES.flush()
    assert len(said(link, "drop_metric")) == 3


REFUSED: list[tuple[MetricKind, Callable[[Metric], Any], str]] = [
    (MetricKind.COUNTER, lambda m: m.increment(-1), "only by >= 0"),
    (MetricKind.COUNTER, lambda m: m.increment(float("nan")), "only by >= 0"),
    (MetricKind.COUNTER, lambda m: m.set(1), "a COUNTER has no set"),
    (MetricKind.COUNTER, lambda m: m.observe(1), "a COUNTER has no observe"),
    (MetricKind.GAUGE, lambda m: m.observe(1), "a GAUGE has no observe"),
    (MetricKind.GAUGE, lambda m: m.set("1"), "set needs a number, not str"),  # type: ignore[arg-type]
    (MetricKind.GAUGE, lambda m: m.set(None), "set needs a number, not NoneType"),  # type: ignore[arg-type]
    (MetricKind.HISTOGRAM, lambda m: m.increment(1), "a HISTOGRAM has no increment"),
    (MetricKind.HISTOGRAM, lambda m: m.set(1), "a HISTOGRAM has no set"),
    (MetricKind.HISTOGRAM, lambda m: m.value(), "a HISTOGRAM has no value"),
]


@pytest.mark.parametrize(("kind", "use", "text"), REFUSED)
def test_uses_that_are_refused(
    kind: MetricKind, use: Callable[[Metric], Any], text: str, link: FakeLink
) -> None:
    family = MetricFamily("a", "b", kind)
    metric = family.Metric(buckets=[1.0] if kind is MetricKind.HISTOGRAM else None)
    with pytest.raises(TritonModelException, match=re.escape(text)):
        use(metric)
    assert said(link, "metric_update", "metric_value") == []


MADE: list[tuple[Callable[[], Any], str]] = [
    (lambda: MetricFamily("a", "b", 7), "7 is no kind"),  # type: ignore[arg-type]
    (lambda: MetricFamily(1, "b", MetricKind.GAUGE), "must be texts"),  # type: ignore[arg-type]
    (lambda: MetricFamily("a", None, MetricKind.GAUGE), "must be texts"),  # type: ignore[arg-type]
    (lambda: counter().Metric(buckets=[1.0]), "buckets are for a HISTOGRAM, not for a COUNTER"),
    (lambda: counter().Metric({"a": 1}), "labels must be texts"),  # type: ignore[dict-item]
    (lambda: counter().Metric([1]), "labels must be a dict, not list"),  # type: ignore[arg-type]
    (lambda: MetricFamily("h", "", MetricKind.HISTOGRAM).Metric(), "needs buckets"),
    (lambda: MetricFamily("h", "", MetricKind.HISTOGRAM).Metric(buckets=[]), "needs buckets"),
    (lambda: MetricFamily("h", "", MetricKind.HISTOGRAM).Metric(buckets=[1, 1]), "must ascend"),
    (
        lambda: MetricFamily("h", "", MetricKind.HISTOGRAM).Metric(buckets=["x"]),  # type: ignore[list-item]
        "must be numbers",
    ),
]


@pytest.mark.parametrize(("make", "text"), MADE)
def test_families_and_metrics_that_are_refused(
    make: Callable[[], Any], text: str, link: FakeLink
) -> None:
    with pytest.raises(TritonModelException, match=re.escape(text)):
        make()
    assert not [message for message in link.said if message[0] == "metric"]


def test_without_a_server() -> None:
    with pytest.raises(TritonModelException, match="only in a model"):
        counter()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("is"), st.integers(-9, 9))))
def test_fewer_messages_say_the_same(changes: list[tuple[bool, str, int]]) -> None:
    link, updates = FakeLink(), Updates()
    expected = [0.0, 0.0]
    for second, letter, value in changes:
        action = "increment" if letter == "i" else "set"
        expected[second] = value + (expected[second] if letter == "i" else 0)
        updates.add(_Change(link, int(second), action, float(value)))
    updates.flush()
    values = [0.0, 0.0]
    for _, handle, done, amount in link.said:
        assert isinstance(handle, int) and isinstance(amount, float)
        values[handle] = amount + (values[handle] if done == "increment" else 0)
    assert values == expected
    assert len(link.said) <= 2
