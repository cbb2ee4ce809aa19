"""What a version says of itself when instances are in trouble, or have opinions of their own."""

import asyncio
import logging
from collections.abc import Sequence

import pytest
from tests.unit.core.mortal import Mortal

from naiad.core import readiness
from naiad.core.readiness import ModelReadiness, Readiness
from naiad_backends.api import Execution, Instance, Request

ALL, ANY = ModelReadiness


class Plain(Instance):
    """One that cannot die."""

    def execute(self, requests: Sequence[Request]) -> Execution:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Opinion(Plain):
    """One that says what `answers` gets, as often as `asked` tells."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    async def unready(self) -> str:
        self.asked += 1
        return await self.answers.get()


def of(*instances: Instance, rule: ModelReadiness = ALL) -> Readiness:
    names = {instance: f"m_{number}" for number, instance in enumerate(instances)}
    return Readiness("model 'm' version 1", rule, names)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- what is known


async def test_instances_that_cannot_die_are_ready_without_being_asked() -> None:
    for rule in ModelReadiness:
        version = of(Plain(), Plain(), rule=rule)
        assert await version.unready() == ""
        assert (version.count, version.live, version.remote) == (2, 2, False)


@pytest.mark.parametrize(
    ("rule", "dead", "reason"),
    [
        (ALL, 0, ""),
        (ALL, 1, "m_0: killed"),
        (ALL, 2, "m_0: killed; m_1: killed"),
        (ANY, 1, ""),
        (ANY, 2, "m_0: killed; m_1: killed"),
    ],
)
async def test_the_rule_says_how_many_must_be_fine(
    rule: ModelReadiness, dead: int, reason: str
) -> None:
    instances = [Mortal(), Mortal()]
    version = of(*instances, rule=rule)
    for instance in instances[:dead]:
        instance.turn("killed")
    assert await version.unready() == reason
    assert version.live == 2 - dead


async def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = Mortal(), Mortal()
    version = of(first, second)
    told: list[int] = []
    version.listener = lambda: told.append(version.live)
    first.turn("killed")
    first.turn("killed")
    second.turn("hangs")
    first.turn("")
    second.turn("")
    assert told == [1, 0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "model 'm' version 1 goes on with 1 of 2 instances: m_0: killed",
        "model 'm' version 1 is not ready: m_0: killed; m_1: hangs",
        "model 'm' version 1 goes on with 1 of 2 instances: m_1: hangs",
        "model 'm' version 1 is ready again",
    ]
    version.end()
    first.turn("closed")
    assert len(told) == len(caplog.records) == 4


async def test_other_instances_take_their_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second, third = Mortal(), Mortal(), Mortal()
    first.restarts, second.restarts = 2, 3
    version = of(first, second)
    first.turn("killed")
    version.exchange({second: "m_0", third: "m_1"})
    assert (version.live, version.restarts) == (2, 5)
    third.restarts = 1
    first.turn("still dead")
    third.turn("killed")
    assert (version.live, version.restarts) == (1, 6)
    assert await version.unready() == "m_1: killed"
    assert len(second.listeners) == 1
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "model 'm' version 1 is ready again",
        "model 'm' version 1 goes on with 1 of 2 instances: m_1: killed",
    ]


# -- what they say


async def test_an_opinion_is_asked_once_and_shared() -> None:
    instance = Opinion()
    version = of(instance)
    asking = [asyncio.create_task(version.unready()) for _ in range(5)]
    await turns()
    asking.pop().cancel()
    await turns()
    instance.answers.put_nowait("not now")
    assert await asyncio.gather(*asking) == ["m_0: not now"] * 4
    assert instance.asked == 1
    instance.answers.put_nowait("")
    assert await version.unready() == ""
    assert instance.asked == 2


async def test_instances_are_asked_side_by_side() -> None:
    slow, quick = Opinion(), Opinion()
    quick.answers.put_nowait("no")
    version = of(slow, quick)
    assert await version.unready() == "m_1: no"
    slow.answers.put_nowait("")
    quick.answers.put_nowait("")
    assert await version.unready() == ""
    assert (slow.asked, quick.asked) == (1, 2)


async def test_one_that_says_yes_is_enough_for_any() -> None:
    slow, no, yes = Opinion(), Opinion(), Opinion()
    version = of(slow, no, yes, rule=ANY)
    no.answers.put_nowait("no")
    yes.answers.put_nowait("")
    assert await version.unready() == ""
    for instance in (slow, no, yes):
        instance.answers.put_nowait("no")
    await version.unasked([slow, no, yes])
    for instance in (slow, no, yes):
        instance.answers.put_nowait("no")
    reason = await version.unready()
    assert sorted(reason.split("; ")) == ["m_0: no", "m_1: no", "m_2: no"]


async def test_nobody_is_asked_when_the_answer_is_known() -> None:
    dead, opinion = Mortal(), Opinion()
    dead.turn("killed")
    assert await of(dead, opinion).unready() == "m_0: killed"
    assert await of(Plain(), opinion, rule=ANY).unready() == ""
    assert opinion.asked == 0


async def test_an_instance_that_does_not_answer_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "LIMIT_S", 0.01)
    instance = Opinion()
    version = of(instance)
    assert await version.unready() == "m_0: did not say within 0.01 s whether it is ready"
    instance.answers.put_nowait("")
    assert await version.unready() == ""


async def test_whoever_closes_instances_waits_for_what_they_say() -> None:
    instance, other = Opinion(), Opinion()
    version = of(instance, other)
    asking = asyncio.create_task(version.unready())
    await turns()
    waiting = asyncio.create_task(version.unasked([instance]))
    await turns()
    assert not waiting.done()
    instance.answers.put_nowait("no")
    await waiting
    assert await asking == "m_0: no"
    await version.unasked([Plain()])
    other.answers.put_nowait("")
    await version.unasked([other])
