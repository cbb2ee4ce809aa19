"""The server's log for models: severities, the caller's place, and Python's own logging."""

import inspect
import logging
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import cast

import pytest
from tests.unit.backends.python.fake_link import FakeLink, connected

from naiad_backends.python.runtime import logger
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.logger import LinkHandler, Logger, LogLevel


def line() -> int:
    """Where it is called."""
    return cast(FrameType, cast(FrameType, inspect.currentframe()).f_back).f_lineno


def test_severities_and_the_callers_place() -> None:
    link = FakeLink()
    with connected(link):
        first = line() + 1
        Logger.log("a")
        Logger.log("b", Logger.WARNING)
        Logger.log("c", level=Logger.LogLevel.ERROR)
        Logger.log_info("d")
        Logger.log_warn("e")
        Logger.log_error("f")
        Logger.log_verbose("100 % ä\n")
    severities = ["INFO", "WARNING", "ERROR", "INFO", "WARNING", "ERROR", "VERBOSE"]
    texts = [*"abcdef", "100 % ä\n"]
    assert link.said == [
        ("log", severity, text, __file__, first + place, "")
        for place, (severity, text) in enumerate(zip(severities, texts, strict=True))
    ]


def test_levels_are_tritons() -> None:
    assert [Logger.INFO, Logger.WARNING, Logger.ERROR, Logger.VERBOSE] == [*LogLevel] == [*range(4)]


def test_unknown_level() -> None:
    with connected(FakeLink()), pytest.raises(TritonModelException, match="7 is no level"):
        Logger.log("a", cast(LogLevel, 7))


@pytest.mark.parametrize(
    ("write", "level"),
    [
        (Logger.log, logging.INFO),
        (Logger.log_info, logging.INFO),
        (Logger.log_warn, logging.WARNING),
        (Logger.log_error, logging.ERROR),
        (Logger.log_verbose, logging.DEBUG),
    ],
)
def test_without_a_server_logging_has_it(
    write: Callable[[str], None], level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        place = line() + 1
        write("100 % done")
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == ("100 % done", level)
    assert (record.pathname, record.lineno) == (__file__, place)


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (logging.DEBUG, "VERBOSE"),
        (logging.INFO, "INFO"),
        (25, "INFO"),
        (logging.WARNING, "WARNING"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "ERROR"),
    ],
)
def test_records_of_logging(level: int, severity: str) -> None:
    link = FakeLink()
    source = logging.Logger("some.library")
    source.addHandler(LinkHandler(link))
    place = line() + 1
    source.log(level, "%d of %s", 3, "x")
    assert link.said == [("log", severity, "3 of x", __file__, place, "some.library")]


def test_records_bring_their_traceback() -> None:
    link = FakeLink()
    source = logging.Logger("x")
    source.addHandler(LinkHandler(link))
    try:
        raise ValueError("ä")
    except ValueError:
        source.exception("failed")
    text = str(link.said[0][2])
    assert text.startswith("failed\nTraceback") and text.endswith("ValueError: ä")


def test_install_sends_all_loggers() -> None:
    # In a process of its own, because it changes the root logger.
    code = """
import logging
from tests.unit.backends.python.fake_link import FakeLink
from naiad_backends.python.runtime.logger import install
link = FakeLink()
install(link)
logging.getLogger("a.b").info("x")
logging.getLogger("a.b").debug("y")
logging.warning("z")
assert [said[1:3] + said[5:] for said in link.said] == [
    ("INFO", "x", "a.b"), ("WARNING", "z", "root")], link.said
"""
    path = f"import sys; sys.path[:0] = {[path for path in sys.path if path]}\n"
    subprocess.run([sys.executable, "-c", path + code], check=True, timeout=60)


def test_a_broken_way_does_not_break_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(FakeLink):
        def tell(self, what: str, *arguments: object) -> None:
            raise OSError("gone")

    source = logging.Logger("x")
    source.addHandler(LinkHandler(Broken()))
    source.warning("y")
    assert "OSError: gone" in capsys.readouterr().err


def test_the_module_has_no_handler_by_itself() -> None:
    assert not any(isinstance(h, LinkHandler) for h in logging.getLogger().handlers)
    assert logger.__doc__
