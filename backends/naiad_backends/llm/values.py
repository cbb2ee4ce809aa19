"""Values of JSON, taken by name and checked: what is wrong is an INVALID_ARG that names the field.

Numbers and flags may be text, as clients of Triton send them.
"""

import contextlib
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from naiad_backends.errors import NaiadError, invalid

LONGEST = 60
"""Characters of what a client sent that an error shows."""


class Values:
    """Values by name, taken one by one. None stands for a missing one."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, float]) -> None:
        self._values = dict(values)
        self._defaults = defaults

    def left(self) -> Mapping[str, Any]:
        """Those that nobody has taken."""
        return self._values

    def take(self, name: str) -> Any:
        """The value as it is, or its default, or None."""
        value = self._values.pop(name, None)
        return self._defaults.get(name) if value is None else value

    def number(
        self, name: str, default: float, least: float, most: float, above: bool = False
    ) -> float:
        """A finite number. above: `least` itself is out of range."""
        value = self.take(name)
        if value is None:
            return default
        number = as_number(name, value)
        if not least <= number <= most or (above and number == least):
            low = f"above {least:g}" if above else f"{least:g}"
            high = f" to {most:g}" if most < math.inf else " or more"
            raise invalid(f"{_shown(value)} is out of range", field=name, hint=f"use {low}{high}")
        return number

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number."""
        value = self.take(name)
        return None if value is None else _within(name, as_whole(name, value), least, most)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise wrong(name, value, "true or false")
        return value

    def text(self, name: str) -> str:
        """A text; empty if there is none."""
        value = self.take(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise wrong(name, value, "a text")
        return value

    def texts(self, name: str, most: int, characters: int, single: bool = False) -> tuple[str, ...]:
        """A list of texts, none of them empty. most, characters: how many, and of all together.
        single: one text stands for a list of it."""
        value = self.take(name)
        if value is None:
            return ()
        if single and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise wrong(name, value, "a list of texts")
        if len(value) > most:
            raise invalid(f"there are {len(value)} of them", field=name, hint=f"use at most {most}")
        for index, one in enumerate(value):
            if not isinstance(one, str):
                raise wrong(f"{name}[{index}]", one, "a text")
            if not one:
                raise invalid("it is empty", field=f"{name}[{index}]")
        if (length := sum(map(len, value))) > characters:
            raise invalid(
                f"there are {length} characters in them",
                field=name,
                hint=f"use at most {characters}",
            )
        return tuple(value)

    def tokens(self, name: str, vocab_size: int, most: int) -> list[int] | None:
        """A list of tokens. most: how many."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(name, value, "a list of tokens")
        if len(value) > most:
            raise invalid(f"there are {len(value)} of them", field=name, hint=f"use at most {most}")
        return [as_token(f"{name}[{i}]", one, vocab_size) for i, one in enumerate(value)]


def as_number(name: str, value: Any) -> float:
    """A finite number. name: of the field, for the error."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise wrong(name, value, "a number")


def as_whole(name: str, value: Any) -> int:
    """A whole number, maybe written as 5.0."""
    if isinstance(value, str) and len(value) < 24:
        with contextlib.suppress(ValueError):
            value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise wrong(name, value, "a whole number")
    return value


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise invalid(f"{value} is out of range", field=name, hint=f"use {least} to {most}")
    return value


def as_token(name: str, value: Any, vocab_size: int) -> int:
    """A token of the vocabulary."""
    token = as_whole(name, value)
    if not 0 <= token < vocab_size:
        raise invalid(
            f"the vocabulary has no token {token}", field=name, hint=f"it has {vocab_size} tokens"
        )
    return token


def wrong(name: str, value: Any, wanted: str) -> NaiadError:
    """The error for a value that is not what was wanted."""
    return invalid(f"{_shown(value)} is not {wanted}", field=name)


def _shown(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
