"""The server's log for models: `Logger`, and what they write with Python's own `logging`.

Without a server, as in a test of a model, `Logger` writes with `logging`, too.
"""

import logging
import sys
from enum import IntEnum

from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Link, link


class LogLevel(IntEnum):
    """The severities, by Triton's names and numbers."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LogLevel = LogLevel

_LEVELS = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.VERBOSE: logging.DEBUG,
}

_alone = logging.getLogger("triton_python_backend_utils")


class Logger:
    """Writes to the server's log, which keeps to the server's settings.

    Source: Triton's Python backend, `pb_utils.Logger`.
    """

    LogLevel = LogLevel
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: "_LogLevel" = LogLevel.INFO) -> None:
        """Raises TritonModelException for a level that does not exist."""
        if level not in _LEVELS:
            raise TritonModelException(
                f"{level!r} is no level; use Logger.INFO, WARNING, ERROR or VERBOSE"
            )
        _write(message, LogLevel(level))

    @staticmethod
    def log_info(message: str) -> None:
        """Write something that people may want to know."""
        _write(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write something that people should look at."""
        _write(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Write something that went wrong."""
        _write(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write a detail, for those who ask for them."""
        _write(message, LogLevel.VERBOSE)


def _write(message: object, level: LogLevel) -> None:
    """For whoever called the function that calls this one."""
    text = str(message)
    try:
        way = link()
    except TritonModelException:
        _alone.log(_LEVELS[level], "%s", text, stacklevel=3)
        return
    caller = sys._getframe(2)
    way.tell("log", level.name, text, caller.f_code.co_filename, caller.f_lineno, "")


class LinkHandler(logging.Handler):
    """Sends records of `logging` to the server's log, under their logger's name."""

    def __init__(self, way: Link) -> None:
        super().__init__()
        self._way = way

    def emit(self, record: logging.LogRecord) -> None:
        """With the traceback, if the record has one."""
        try:
            text = self.format(record)
            name = _severity(record.levelno).name
            self._way.tell("log", name, text, record.pathname, record.lineno, record.name)
        except Exception:
            self.handleError(record)


def _severity(level: int) -> LogLevel:
    if level < logging.INFO:
        return LogLevel.VERBOSE
    if level < logging.WARNING:
        return LogLevel.INFO
    return LogLevel.WARNING if level < logging.ERROR else LogLevel.ERROR


def install(way: Link, level: int = logging.INFO) -> None:
    """Send what is logged in this process to the server, from this level of `logging` on."""
    root = logging.getLogger()
    root.addHandler(LinkHandler(way))
    root.setLevel(level)


def uninstall() -> None:
    """Undo it: what is logged goes to stderr."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, LinkHandler):
            root.removeHandler(handler)
            root.addHandler(logging.StreamHandler())
