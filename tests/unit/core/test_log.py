"""The log keeps to its settings, at the start and after each update."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from naiad.core.log import Log, LogFormat, LogSettings
from naiad_backends.errors import Code, NaiadError

logger = logging.getLogger("naiad.test")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """An open log that goes to a file; the root logger is left as it was."""
    level = logging.getLogger().level
    log = Log(LogSettings(str(tmp_path / "log")))
    log.open()
    yield log
    log.close()
    logging.getLogger().setLevel(level)


def written(log: Log) -> list[str]:
    """The texts of one record of each severity, as far as they are written."""
    path = Path(log.settings.log_file)
    before = len(path.read_text())
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, logging.getLevelName(level))
    return [line.rpartition(" ")[2] for line in path.read_text()[before:].splitlines()]


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, ["INFO", "WARNING", "ERROR", "CRITICAL"]),
        ({"log_info": False}, ["WARNING", "ERROR", "CRITICAL"]),
        ({"log_warning": False}, ["INFO", "ERROR", "CRITICAL"]),
        ({"log_error": False}, ["INFO", "WARNING"]),
        ({"log_verbose_level": 1, "log_info": False}, ["DEBUG", "WARNING", "ERROR", "CRITICAL"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, []),
    ],
)
def test_each_severity_has_its_switch(
    log: Log, changes: dict[str, object], texts: list[str]
) -> None:
    log.update(changes)
    assert written(log) == texts
    log.update({"log_verbose_level": 0, "log_info": True, "log_warning": True, "log_error": True})
    assert written(log) == ["INFO", "WARNING", "ERROR", "CRITICAL"]


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("default", r"W\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ naiad\.test\] text\n"),
        ("ISO8601", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ W \d+ naiad\.test\] text\n"),
    ],
)
def test_the_form_of_a_line(log: Log, form: str, pattern: str) -> None:
    log.update({"log_format": form})
    logger.warning("te%s", "xt")
    assert re.fullmatch(pattern, Path(log.settings.log_file).read_text())


def test_an_exception_comes_with_its_traceback(log: Log) -> None:
    logger.error("failed", exc_info=ValueError("why"))
    assert Path(log.settings.log_file).read_text().endswith("failed\nValueError: why\n")


def test_none_leaves_a_value_as_it_is() -> None:
    settings = LogSettings("file", log_info=False, log_format=LogFormat.ISO8601)
    assert settings.changed(dict.fromkeys(settings.document())) == settings


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("log_file", "other", Code.UNSUPPORTED),
        ("log_info", 1, Code.INVALID_ARG),
        ("log_warning", "true", Code.INVALID_ARG),
        ("log_verbose_level", -1, Code.INVALID_ARG),
        ("log_verbose_level", 2**32, Code.INVALID_ARG),
        ("log_verbose_level", 1.0, Code.INVALID_ARG),
        ("log_verbose_level", True, Code.INVALID_ARG),
        ("log_format", "iso8601", Code.INVALID_ARG),
        ("log_format", [], Code.INVALID_ARG),
        ("log_level", 1, Code.INVALID_ARG),
    ],
)
def test_a_bad_update_changes_nothing(name: str, value: object, code: Code) -> None:
    log = Log(LogSettings())
    with pytest.raises(NaiadError) as caught:
        log.update({"log_error": False, name: value})
    assert (caught.value.code, caught.value.field) == (code, name)
    assert log.settings == LogSettings()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(NaiadError, match=r"--log-file: .* cannot be written"):
        Log(LogSettings(str(tmp_path / "none" / "log"))).open()
