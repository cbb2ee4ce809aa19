"""What a model's `is_ready` is taken to say, whatever its author wrote."""

import asyncio
import sys
import threading
from typing import Any

import pytest

from naiad_backends.python.runtime.runner import Runner


class Silent:
    """A model that is asked and answers when it may."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.calls = 0

    def execute(self, requests: Any) -> None:
        pass

    def is_ready(self) -> Any:
        self.calls += 1
        self.called.release()
        self.may_answer.wait()
        return True


def says(value: Any) -> Any:
    def is_ready(self: Any) -> Any:
        return value

    return is_ready


def fails(self: Any) -> bool:
    raise ValueError("no weights")


def ends(self: Any) -> bool:
    sys.exit(3)


async def waits(self: Any) -> bool:
    await asyncio.sleep(0)
    return True


async def waits_and_fails(self: Any) -> bool:
    await asyncio.sleep(0)
    raise ValueError("no weights")


@pytest.mark.parametrize(
    ("is_ready", "reason"),
    [
        (says(True), ""),
        (waits, ""),
        (says(False), "is_ready says no"),
        (says(1), "is_ready returned int, not a bool"),
        (says(None), "is_ready returned None, not a bool"),
        (fails, "is_ready failed: ValueError: no weights (test_opinion.py"),
        (waits_and_fails, "is_ready failed: ValueError: no weights (test_opinion.py"),
        (ends, "is_ready failed: SystemExit: 3"),
    ],
)
def test_only_true_is_yes(is_ready: Any, reason: str) -> None:
    model = type("Model", (), {"execute": lambda self, requests: None, "is_ready": is_ready})()
    complaints: list[str] = []
    runner = Runner(model, False, complaints.append)
    assert runner.has_opinion
    said = runner.unready(30)
    assert said.startswith(reason) and bool(said) == bool(reason)
    assert bool(complaints) == ("failed" in reason)
    runner.finalize()


def test_a_model_that_says_nothing_is_called_once() -> None:
    model = Silent()
    runner = Runner(model, False, print)
    for _ in range(3):
        assert runner.unready(0.01) == "is_ready has not answered within 0.01 s"
    assert model.calls == 1
    first, second = runner.opinion(), runner.opinion()
    model.may_answer.set()
    assert first.result(30) == second.result(30) == ""
    assert model.calls == 1
    assert runner.unready(30) == ""
    assert model.calls == 2
