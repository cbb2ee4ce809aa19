"""Members of a JSON object, read one by one: of the wanted type and range, or an error with a path.

A member that is null counts as left out, as in OpenAI's API.
"""

import math
from typing import Any

from naiad_backends.errors import NaiadError, invalid


class Fields:
    """The members of one object."""

    def __init__(self, document: Any, path: str = "") -> None:
        """path: of the object, as in `stream_options`; empty for the body itself.
        Raises INVALID_ARG for what is no object."""
        if not isinstance(document, dict):
            raise invalid("is not an object" if path else "the body is not an object", field=path)
        self.document: dict[str, Any] = document
        self._prefix = f"{path}." if path else ""

    def get(self, name: str) -> Any:
        """Whatever it is; None if it is left out."""
        return self.document.get(name)

    def path(self, name: str) -> str:
        """A member's path from the body on."""
        return self._prefix + name

    def wrong(self, name: str, text: str, hint: str = "") -> NaiadError:
        """The error for a member."""
        return invalid(text, field=self.path(name), hint=hint)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.document.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number of this range, its ends included."""
        value = self.document.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "must be a whole number")
        if not least <= value <= most:
            raise self.wrong(name, f"is {value}, but must be from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float, open: bool = False) -> float | None:
        """A number of this range, its ends included, but with `open` not the lower one."""
        value = self.document.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(name, "must be a number")
        if not least <= value <= most or (open and value == least):
            above = f"above {least:g}" if open else f"at least {least:g}"
            below = f" and at most {most:g}" if most < math.inf else ""
            raise self.wrong(name, f"is {value:g}, but must be {above}{below}")
        if not math.isfinite(value):
            raise self.wrong(name, "must be finite")
        return float(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.document.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A list of strings that are not empty."""
        value = self._list(name, most)
        for number, each in enumerate(value):
            if not isinstance(each, str):
                raise self.wrong(f"{name}[{number}]", "must be a string")
            if not each:
                raise self.wrong(f"{name}[{number}]", "must not be empty")
        return value

    def tokens(self, name: str, most: int) -> list[int]:
        """A list of tokens."""
        value = self._list(name, most)
        if not are_tokens(value):
            raise self.wrong(name, "must hold tokens only: whole numbers from 0 on")
        return value

    def object(self, name: str) -> "Fields | None":
        """An object."""
        value = self.document.get(name)
        return None if value is None else Fields(value, self.path(name))

    def _list(self, name: str, most: int) -> list[Any]:
        value = self.document.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} entries, but may have {most}")
        return value


def are_tokens(value: list[Any]) -> bool:
    """Whether a list holds tokens only."""
    return all(type(each) is int and 0 <= each < 2**31 for each in value)
