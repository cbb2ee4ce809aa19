"""When a connection is pinged, retired and cut, by a clock that stands in the test."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc.keepalive import Act, Keepalive
from naiad.grpc.options import MOST_MS, KeepaliveOptions

QUICK = KeepaliveOptions(time_ms=10_000, timeout_ms=3_000, without_calls=True, most_pings=0)


def acts(keepalive: Keepalive, until: float, calls: bool = True) -> list[tuple[float, Act]]:
    """What is done up to a time, if the client is silent and `tick` is called when it is due."""
    done: list[tuple[float, Act]] = []
    while (now := keepalive.due) <= until:
        act = keepalive.tick(now, calls)
        if act is not Act.NOTHING:
            done.append((now, act))
        if act is Act.CUT:
            break
    return done


def test_the_defaults_are_those_of_triton() -> None:
    keepalive = Keepalive(KeepaliveOptions(), 5.0)

    assert acts(keepalive, 10_000) == [(7205, Act.PING), (7225, Act.CUT)]


def test_no_timer_where_there_is_nothing_to_do() -> None:
    assert Keepalive(KeepaliveOptions(time_ms=MOST_MS), 0).due == math.inf


def test_a_client_that_lives_is_pinged_in_even_steps() -> None:
    keepalive = Keepalive(QUICK, 0)
    pings = []
    while (now := keepalive.due) <= 45:
        if keepalive.tick(now, calls=False) is Act.PING:
            pings.append(now)
            keepalive.heard = True
    assert pings == [10, 20, 30, 40]


def test_a_timeout_that_is_longer_than_the_time() -> None:
    keepalive = Keepalive(KeepaliveOptions(1_000, 5_000, without_calls=True, most_pings=0), 0)

    assert keepalive.tick(1, calls=True) is Act.PING
    keepalive.heard = True
    assert keepalive.due == 6
    assert keepalive.tick(6, calls=True) is Act.PING


def test_too_early_a_tick_does_nothing() -> None:
    keepalive = Keepalive(QUICK, 0)

    assert keepalive.tick(9.999, calls=True) is Act.NOTHING
    assert keepalive.due == 10


def test_nobody_is_pinged_without_calls() -> None:
    keepalive = Keepalive(KeepaliveOptions(time_ms=10_000), 0)

    assert acts(keepalive, 100, calls=False) == []
    assert keepalive.tick(keepalive.due, calls=True) is Act.PING


def test_pings_without_answers_between_them_are_few() -> None:
    keepalive = Keepalive(KeepaliveOptions(time_ms=10_000, timeout_ms=3_000), 0)
    pings = []
    while keepalive.due < 200:
        now = keepalive.due
        if now == 110:
            keepalive.spoke = True
        if keepalive.tick(now, calls=True) is Act.PING:
            pings.append(now)
            keepalive.heard = True
    assert pings == [10, 20, 110, 120]


# -- the client's pings


def strikes(options: KeepaliveOptions, times: Sequence[float], calls: bool = True) -> int | None:
    """Which ping was one too many."""
    keepalive = Keepalive(options, 0)
    for number, now in enumerate(times):
        if keepalive.pinged(now, calls):
            return number
    return None


def test_the_third_ping_too_soon_is_too_many() -> None:
    assert strikes(KeepaliveOptions(), range(100)) == 3


def test_pings_that_keep_their_distance() -> None:
    assert strikes(KeepaliveOptions(), range(0, 100_000, 300)) is None
    assert strikes(KeepaliveOptions(), range(0, 100_000, 299)) == 3


def test_without_calls_the_distance_is_two_hours() -> None:
    assert strikes(KeepaliveOptions(), range(0, 100_000, 300), calls=False) == 3
    assert strikes(KeepaliveOptions(), range(0, 100_000, 7200), calls=False) is None
    permitted = KeepaliveOptions(without_calls=True)
    assert strikes(permitted, range(0, 100_000, 300), calls=False) is None


def test_any_number_of_pings() -> None:
    assert strikes(KeepaliveOptions(most_strikes=0), [0] * 1000) is None
    assert strikes(KeepaliveOptions(least_interval_ms=0), [0] * 1000) is None


def test_answers_make_up_for_pings() -> None:
    keepalive = Keepalive(KeepaliveOptions(), 0)
    for now in range(100):
        keepalive.spoke = True
        assert not any(keepalive.pinged(now, calls=True) for _ in range(3))


# -- age


def test_age() -> None:
    options = KeepaliveOptions(time_ms=MOST_MS, age_ms=60_000, grace_ms=10_000)

    assert acts(Keepalive(options, 0), 1e9) == [(60, Act.RETIRE), (70, Act.CUT)]


def test_age_is_stretched() -> None:
    options = KeepaliveOptions(time_ms=MOST_MS, age_ms=60_000)

    assert Keepalive(options, 0, stretch=1.1).due == pytest.approx(66)


def test_a_client_that_does_not_confirm_is_cut_without_grace() -> None:
    options = KeepaliveOptions(time_ms=MOST_MS, timeout_ms=20_000, age_ms=60_000)

    assert acts(Keepalive(options, 0), 1e9) == [(60, Act.RETIRE), (80, Act.CUT)]


def test_a_client_that_confirms_may_stay_for_its_calls() -> None:
    keepalive = Keepalive(KeepaliveOptions(time_ms=MOST_MS, age_ms=60_000), 0)

    assert keepalive.tick(60, calls=True) is Act.RETIRE
    keepalive.heard = True
    assert keepalive.tick(80, calls=True) is Act.NOTHING
    assert keepalive.due == math.inf


# -- whatever happens

OPTIONS = st.builds(
    KeepaliveOptions,
    time_ms=st.sampled_from([1, 500, 2_000, MOST_MS]),
    timeout_ms=st.sampled_from([1, 700, 5_000, MOST_MS]),
    without_calls=st.booleans(),
    most_pings=st.integers(0, 3),
    least_interval_ms=st.sampled_from([0, 300, 2_000]),
    most_strikes=st.integers(0, 3),
    age_ms=st.sampled_from([0, 1_000, 4_000]),
    grace_ms=st.sampled_from([0, 1, 2_000]),
)
EVENTS = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(["hear", "speak", "ping", "wait"]), st.booleans())
)


@given(OPTIONS, EVENTS)
def test_what_always_holds(
    options: KeepaliveOptions, events: list[tuple[float, str, bool]]
) -> None:
    keepalive = Keepalive(options, 0)
    now, retired, pings = 0.0, 0, 0
    for step, event, calls in events:
        now += step
        if event == "ping":
            keepalive.heard = True
            keepalive.pinged(now, calls)
        keepalive.heard |= event == "hear"
        if event == "speak":
            keepalive.spoke, pings = True, 0
        ticks = 0
        while keepalive.due <= now and ticks < 5:
            ticks += 1
            act = keepalive.tick(now, calls)
            if act is Act.CUT:
                return
            retired += act is Act.RETIRE
            pings += act is Act.PING
        assert keepalive.due > now or 1 in (options.time_ms, options.timeout_ms)
        assert retired <= 1
        assert not options.most_pings or pings <= options.most_pings
        if options.age_ms and now >= options.age_ms / 1000:
            assert retired == 1
