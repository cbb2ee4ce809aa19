"""Metrics that models make: who may do what, who holds what, and what a scrape reads."""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from prometheus_client.parser import text_string_to_metric_families

from naiad.core.custom_metrics import CustomMetrics
from naiad.core.metrics import Metrics, _text
from naiad_backends.errors import Code, NaiadError

Labels = tuple[tuple[str, str], ...]


def text(metrics: CustomMetrics) -> str:
    return _text(metrics.families()).decode()


def samples(metrics: CustomMetrics) -> dict[tuple[str, Labels], float]:
    """What Prometheus' own parser reads; it puts _total behind the names of counters."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text(metrics))
        for sample in family.samples
    }


def make(kind: str = "COUNTER", name: str = "a", owner: str = "o") -> CustomMetrics:
    """One family with one metric, handle 1."""
    metrics = CustomMetrics()
    metrics.family(owner, name, "Text", kind)
    metrics.metric(owner, 1, name, {"x": "1"}, [1.0, 2.5] if kind == "HISTOGRAM" else None)
    return metrics


def test_counter_as_it_is_named() -> None:
    metrics = make(name="my:requests")
    metrics.update("o", 1, "increment", 1)
    metrics.update("o", 1, "increment", 1.5)
    assert metrics.value("o", 1) == 2.5
    assert text(metrics).splitlines() == [
        "# HELP my:requests Text",
        "# TYPE my:requests counter",
        'my:requests{x="1"} 2.5',
    ]


@pytest.mark.parametrize("kind", ["COUNTER", "GAUGE"])
@pytest.mark.parametrize("name", ["a_total", "a_created", "a_total_total", "a_info", "a_total_x"])
def test_no_name_is_changed(kind: str, name: str) -> None:
    metrics = make(kind, name)
    assert [line.split()[2] for line in text(metrics).splitlines()[:2]] == [name, name]
    assert f'\n{name}{{x="1"}} 0.0\n' in text(metrics)


def test_a_text_that_looks_like_a_line() -> None:
    metrics = CustomMetrics()
    metrics.family("o", "a", "b\n# TYPE a_total gauge\\ä", "COUNTER")
    metrics.metric("o", 1, "a", {"x": '"\n\\'}, None)
    assert text(metrics).splitlines() == [
        "# HELP a b\\n# TYPE a_total gauge\\\\ä",
        "# TYPE a counter",
        'a{x="\\"\\n\\\\"} 0.0',
    ]


def test_gauge() -> None:
    metrics = make("GAUGE")
    metrics.update("o", 1, "set", 4)
    metrics.update("o", 1, "increment", -6)
    assert metrics.value("o", 1) == -2
    assert samples(metrics) == {("a", (("x", "1"),)): -2}


def test_histogram() -> None:
    metrics = make("HISTOGRAM")
    for value in (0.5, 1, 1.5, 2.5, 100):
        metrics.update("o", 1, "observe", value)
    assert text(metrics).splitlines() == [
        "# HELP a Text",
        "# TYPE a histogram",
        'a_bucket{le="1",x="1"} 2.0',
        'a_bucket{le="2.5",x="1"} 4.0',
        'a_bucket{le="+Inf",x="1"} 5.0',
        'a_count{x="1"} 5.0',
        'a_sum{x="1"} 105.5',
    ]


def test_what_is_no_number_is_above_all_bounds() -> None:
    metrics = make("HISTOGRAM")
    metrics.update("o", 1, "observe", math.nan)
    assert 'a_bucket{le="2.5",x="1"} 0.0' in text(metrics)
    assert 'a_bucket{le="+Inf",x="1"} 1.0' in text(metrics)


def test_a_bound_of_infinity_is_there_once() -> None:
    metrics = CustomMetrics()
    metrics.family("o", "a", "", "HISTOGRAM")
    metrics.metric("o", 1, "a", {}, [1.0, math.inf])
    assert text(metrics).count("+Inf") == 1


def test_equal_names_and_labels_share_a_value() -> None:
    metrics = make("HISTOGRAM")
    metrics.family("p", "a", "Another text", "HISTOGRAM")
    # The buckets of the first one stay: a new version of a model may have others.
    metrics.metric("p", 1, "a", {"x": "1"}, [7.0])
    metrics.update("p", 1, "observe", 2)
    metrics.update("o", 1, "observe", 2)
    assert samples(metrics)["a_bucket", (("le", "2.5"), ("x", "1"))] == 2
    metrics.forget("o")
    assert samples(metrics)["a_count", (("x", "1"),)] == 2
    metrics.drop_metric("p", 1)
    assert text(metrics) == ""


def test_a_family_is_free_again_when_nobody_has_it() -> None:
    metrics = make()
    metrics.family("o", "a", "", "COUNTER")
    metrics.drop_family("o", "a")
    metrics.drop_metric("o", 1)
    with pytest.raises(NaiadError, match="is there as a COUNTER"):
        metrics.family("p", "a", "", "GAUGE")
    metrics.drop_family("o", "a")
    metrics.family("p", "a", "", "GAUGE")


def test_what_is_not_there_is_dropped_in_peace() -> None:
    metrics = make()
    metrics.drop_family("o", "b")
    metrics.drop_family("p", "a")
    metrics.drop_metric("o", 2)
    metrics.drop_metric("p", 1)
    metrics.forget("p")
    assert samples(metrics) == {("a_total", (("x", "1"),)): 0}


REFUSED: list[tuple[str, Callable[[CustomMetrics], object], str]] = [
    ("COUNTER", lambda m: m.family("o", "b", "", "SUMMARY"), "unknown kind 'SUMMARY'"),
    ("COUNTER", lambda m: m.family("o", "", "", "GAUGE"), "'' is no name of a metric"),
    ("COUNTER", lambda m: m.family("o", "1a", "", "GAUGE"), "'1a' is no name of a metric"),
    ("COUNTER", lambda m: m.family("o", "a-b", "", "GAUGE"), "'a-b' is no name of a metric"),
    ("COUNTER", lambda m: m.family("o", "ä", "", "GAUGE"), "'ä' is no name of a metric"),
    ("COUNTER", lambda m: m.family("o", "nv_inference_count", "", "COUNTER"), "the server's own"),
    ("COUNTER", lambda m: m.family("o", "a", "", "GAUGE"), "is there as a COUNTER, not as a GAUGE"),
    ("COUNTER", lambda m: m.metric("o", 2, "b", {}, None), "there is no family 'b'"),
    ("COUNTER", lambda m: m.metric("o", 1, "a", {}, None), "handle 1 already"),
    ("COUNTER", lambda m: m.metric("o", 2, "a", {"x-y": ""}, None), "has a label 'x-y'"),
    ("COUNTER", lambda m: m.metric("o", 2, "a", {"__x": ""}, None), "has a label '__x'"),
    ("COUNTER", lambda m: m.metric("o", 2, "a", {}, [1.0]), "is a COUNTER, which has no buckets"),
    ("COUNTER", lambda m: m.update("o", 1, "set", 1), "is a COUNTER, which has no set"),
    ("COUNTER", lambda m: m.update("o", 1, "increment", -1), "which -1 is not added to"),
    ("COUNTER", lambda m: m.update("o", 2, "increment", 1), "no metric with handle 2"),
    ("COUNTER", lambda m: m.update("p", 1, "increment", 1), "no metric with handle 1"),
    ("COUNTER", lambda m: m.value("o", 2), "no metric with handle 2"),
    ("GAUGE", lambda m: m.update("o", 1, "observe", 1), "is a GAUGE, which has no observe"),
    ("GAUGE", lambda m: m.update("o", 1, "divide", 1), "is a GAUGE, which has no divide"),
    ("GAUGE", lambda m: m.family("o", "a", "", "HISTOGRAM"), "is there as a GAUGE"),
    ("HISTOGRAM", lambda m: m.family("o", "a_sum", "", "GAUGE"), "the HISTOGRAM 'a': a_sum"),
    ("HISTOGRAM", lambda m: m.update("o", 1, "increment", 1), "which has no increment"),
    ("HISTOGRAM", lambda m: m.value("o", 1), "which has no value"),
    ("HISTOGRAM", lambda m: m.metric("o", 2, "a", {}, None), "which needs buckets"),
    ("HISTOGRAM", lambda m: m.metric("o", 2, "a", {}, []), "which needs buckets"),
    ("HISTOGRAM", lambda m: m.metric("o", 2, "a", {}, [2.0, 1.0]), "needs buckets that ascend"),
    ("HISTOGRAM", lambda m: m.metric("o", 2, "a", {}, [math.nan]), "needs buckets that ascend"),
    ("HISTOGRAM", lambda m: m.metric("o", 2, "a", {"le": "1"}, [1.0]), "label 'le' is its own"),
]


@pytest.mark.parametrize(("kind", "use", "message"), REFUSED)
def test_what_is_refused(kind: str, use: Callable[[CustomMetrics], object], message: str) -> None:
    metrics = make(kind)
    before = text(metrics)
    with pytest.raises(NaiadError, match=re.escape(message)) as caught:
        use(metrics)
    assert caught.value.code is Code.INVALID_ARG
    assert text(metrics) == before


def test_many_threads_lose_nothing() -> None:
    metrics = make()

    def work(number: int) -> None:
        metrics.family(str(number), "a", "", "COUNTER")
        metrics.metric(str(number), 1, "a", {"x": "1"}, None)
        for _ in range(500):
            metrics.update(str(number), 1, "increment", 1)
        metrics.families()
        metrics.forget(str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("o", 1) == 4000


async def test_they_follow_the_servers_own() -> None:
    metrics = make()
    lines = (await Metrics(list, custom=metrics.families).exposition()).decode().splitlines()
    assert lines[0].startswith("# HELP nv_inference_request_success ")
    assert lines[-1] == 'a{x="1"} 0.0'


OWNERS, NAMES, LABELS = st.sampled_from("op"), st.sampled_from("ab"), st.sampled_from(["", "1"])
KINDS = {"a": "COUNTER", "b": "HISTOGRAM"}
VALUES = st.integers(0, 5)


class Use(RuleBasedStateMachine):
    """Owners come and go, beside the simplest thing that keeps count of them."""

    @initialize()
    def begin(self) -> None:
        self.metrics = CustomMetrics()
        self.handles: dict[tuple[str, int], tuple[str, str]] = {}
        self.seen: dict[tuple[str, str], list[int]] = {}
        self.number = 0

    @rule(owner=OWNERS, name=NAMES, label=LABELS)
    def make(self, owner: str, name: str, label: str) -> None:
        self.number += 1
        self.metrics.family(owner, name, "", KINDS[name])
        buckets = [1.0, 3.0] if name == "b" else None
        self.metrics.metric(owner, self.number, name, {"x": label}, buckets)
        self.handles[owner, self.number] = name, label
        self.seen.setdefault((name, label), [])

    @rule(data=st.data(), value=VALUES)
    def update(self, data: st.DataObject, value: int) -> None:
        if self.handles:
            owner, handle = data.draw(st.sampled_from(sorted(self.handles)))
            name, label = self.handles[owner, handle]
            action = "increment" if name == "a" else "observe"
            self.metrics.update(owner, handle, action, value)
            self.seen[name, label].append(value)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.handles:
            owner, handle = data.draw(st.sampled_from(sorted(self.handles)))
            self.metrics.drop_metric(owner, handle)
            self.metrics.drop_family(owner, self.handles[owner, handle][0])
            self._gone([(owner, handle)])

    @rule(owner=OWNERS)
    def forget(self, owner: str) -> None:
        self.metrics.forget(owner)
        self._gone([key for key in self.handles if key[0] == owner])

    def _gone(self, keys: list[tuple[str, int]]) -> None:
        for key in keys:
            del self.handles[key]
        left = set(self.handles.values())
        self.seen = {series: values for series, values in self.seen.items() if series in left}

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "metrics"):
            assert samples(self.metrics) == self._expected()

    def _expected(self) -> dict[tuple[str, Labels], float]:
        found: dict[tuple[str, Labels], float] = {}
        for (name, label), values in self.seen.items():
            x = ("x", label)
            if name == "a":
                found["a_total", (x,)] = sum(values)
                continue
            counts = Counter({le: 0 for le in ("1", "3", "+Inf")})
            counts.update({le: sum(v <= float(le) for v in values) for le in counts})
            for le, count in counts.items():
                found["b_bucket", (("le", le), x)] = count
            found["b_count", (x,)] = len(values)
            found["b_sum", (x,)] = sum(values)
        return found


TestUse = Use.TestCase
