"""What can be wrong in a configuration and where: mistakes, their lines, and the error of them all.

Knows field paths such as `input[1].dims` and the lines they stand in; nothing of any text format.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from naiad_backends.errors import Code, NaiadError

_LAST_STEP = re.compile(r'(?:\.?\w+|\[\d+\]|\["(?:[^"\\]|\\.)*"\])$')

# A client can send a configuration with any number of them.
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to put right.

    path: the field, such as `input[1].dims` or `parameters["key"]`; empty for the whole file.
    message: what is wrong with it.  hint: what to do; empty if the message says it.
    line: counted from 1; 0 if it stands in no file.
    """

    path: str
    message: str
    hint: str = ""
    line: int = 0

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{path}{self.message}{hint}"


class ConfigError(NaiadError):
    """All mistakes of one configuration as one error; `field` is the first one's place."""

    def __init__(
        self, file: str, mistakes: Sequence[Mistake], code: Code = Code.INVALID_ARG
    ) -> None:
        """file: the configuration's name relative to the model's folder.  mistakes: at least one,
        reported in the order of their lines."""
        self.file = file
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        first = self.mistakes[0]
        if len(self.mistakes) == 1:
            message, hint = str(replace(first, hint="")), first.hint
        else:
            listed = "; ".join(
                f"line {mistake.line}: {mistake}" if mistake.line else str(mistake)
                for mistake in self.mistakes[:_MOST_LISTED]
            )
            more = "; ..." if len(self.mistakes) > _MOST_LISTED else ""
            message, hint = f"{len(self.mistakes)} mistakes: {listed}{more}", ""
        super().__init__(code, message, field=place(file, first.line), hint=hint)


def place(file: str, line: int) -> str:
    """`config.pbtxt:12`, or just the file when the line is not known."""
    return f"{file}:{line}" if line else file


def member(path: str, name: str) -> str:
    """The path of a field of the message at `path`."""
    return f"{path}.{name}" if path else name


def item(path: str, index: int) -> str:
    """The path of an element of the repeated field at `path`."""
    return f"{path}[{index}]"


def entry(path: str, key: object) -> str:
    """The path of the value under a key of the map at `path`."""
    return f"{path}[{json.dumps(str(key), ensure_ascii=False)}]"


def line_of(path: str, lines: Mapping[str, int]) -> int:
    """The line of a field, else that of the nearest thing around it that stands in the file."""
    while path and path not in lines:
        shorter = _LAST_STEP.sub("", path)
        path = shorter if shorter != path else ""
    return lines.get(path, 0)
