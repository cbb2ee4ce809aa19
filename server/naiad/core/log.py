"""The log: which severities are written, where and in which form. Settings may change at any time.

It acts on Python's root logger, so what libraries log follows the same settings. Knows no wire
format.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from naiad_backends.errors import invalid, unsupported

Value = bool | int | str
"""What a setting may be."""


class LogFormat(StrEnum):
    """How a line of the log begins; times are UTC."""

    DEFAULT = "default"
    ISO8601 = "ISO8601"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The settings by the protocol's names, in its order.

    log_file: where the log goes, standard error if empty; fixed at the start.
    log_verbose_level: from 1 on details are written, too.
    """

    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: LogFormat = LogFormat.DEFAULT

    def document(self) -> dict[str, Value]:
        """All settings as plain values."""
        return {name: str(v) if isinstance(v, str) else v for name, v in asdict(self).items()}

    def changed(self, changes: Mapping[str, object]) -> "LogSettings":
        """The settings after an update; None leaves a value as it is.

        Raises INVALID_ARG for an unknown name and for a value that a setting cannot have,
        UNSUPPORTED for another log file.
        """
        given = {name: _checked(name, value) for name, value in changes.items()}
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **values)

    def writes(self, level: int) -> bool:
        """Whether records of a level of Python's are written."""
        if level < logging.INFO:
            return self.log_verbose_level > 0
        if level < logging.WARNING:
            return self.log_info
        return self.log_warning if level < logging.ERROR else self.log_error


class Log:
    """The settings in force, and the handler that keeps to them once it is open."""

    def __init__(self, settings: LogSettings) -> None:
        self.settings = settings
        self._handler: logging.Handler | None = None

    def open(self) -> None:
        """Write the log from now on. Raises INVALID_ARG for a file that cannot be written."""
        self._handler = self._made()
        self._handler.addFilter(lambda record: self.settings.writes(record.levelno))
        logging.getLogger().addHandler(self._handler)
        self._apply()

    def update(self, changes: Mapping[str, object]) -> None:
        """Change some settings, all of them or none. Raises as `LogSettings.changed`."""
        self.settings = self.settings.changed(changes)
        self._apply()

    def close(self) -> None:
        """Write nothing more."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()
            self._handler = None

    def _made(self) -> logging.Handler:
        if not self.settings.log_file:
            return logging.StreamHandler()
        try:
            return logging.FileHandler(self.settings.log_file, encoding="utf-8")
        except OSError as error:
            raise invalid(
                f"'{self.settings.log_file}' cannot be written: {error.strerror}",
                field="--log-file",
            ) from error

    def _apply(self) -> None:
        if self._handler is None:
            return
        self._handler.setFormatter(_Formatter(self.settings.log_format))
        # The loggers' own check is cheaper than a record that the handler's filter then drops.
        wanted = filter(self.settings.writes, _LEVELS)
        logging.getLogger().setLevel(next(wanted, logging.CRITICAL + 1))


_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


class _Formatter(logging.Formatter):
    """Triton's two forms of a line: severity and time, process, logger, text."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def formatMessage(self, record: logging.LogRecord) -> str:
        severity, now = record.levelname[0], time.gmtime(record.created)
        if self._form is LogFormat.ISO8601:
            head = time.strftime(f"%Y-%m-%dT%H:%M:%SZ {severity}", now)
        else:
            head = time.strftime(f"{severity}%m%d %H:%M:%S", now)
            head += f".{int(record.created % 1 * 1e6):06d}"
        return f"{head} {record.process} {record.name}] {record.message}"


_NAMES = tuple(setting.name for setting in fields(LogSettings))


def _checked(name: str, value: object) -> Value | None:
    if name not in _NAMES:
        raise invalid("unknown log setting", field=name[:60], hint=f"use {', '.join(_NAMES)}")
    if value is None:
        return None
    if name == "log_file":
        raise unsupported(
            "the log file cannot be changed while the server runs",
            field=name,
            hint="start the server with --log-file",
        )
    if name == "log_format":
        if value not in tuple(LogFormat):
            raise invalid("unknown format", field=name, hint="use default or ISO8601")
        return LogFormat(str(value))
    if name == "log_verbose_level":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise invalid("must be an integer from 0 to 4294967295", field=name)
        return value
    if not isinstance(value, bool):
        raise invalid("must be true or false", field=name)
    return value
