"""Values of config.json or of GGUF metadata, checked as they are asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from naiad_backends.errors import NaiadError, invalid, not_found

MOST = 1 << 31
"""No size of a model is larger."""
_LARGEST = 1e30
"""No other number is, so that sums and products are finite."""


class Fields:
    """values: what a file says; null is as good as missing.  source: the file, for errors.  prefix:
    of every name."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def get(self, name: str) -> Any:
        """As it is; None if missing."""
        return self.values.get(self.prefix + name)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` on. INVALID_ARG if it is not, or if it is missing and there
        is no default."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < MOST:
            raise self.wrong(name, f"a whole number from {least} on", value)
        return value

    def number(self, name: str, default: float | None = None, above: float = -math.inf) -> float:
        """A number between -1e30 and 1e30, larger than `above`."""
        value = self._value(name, default)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not (-_LARGEST <= value <= _LARGEST and value > above):
            wanted = "a number" if above == -math.inf else f"a number above {above:g}"
            raise self.wrong(name, wanted, value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers above 0; none if missing."""
        value = self.get(name)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(
            type(item) in (int, float) and 0 < item <= _LARGEST for item in value
        ):
            raise self.wrong(name, "a list of numbers above 0", value)
        return tuple(map(float, value))

    def part(self, name: str) -> "Fields":
        """Fields inside of a field; none if missing."""
        value = self.get(name)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object", value)
        return Fields(value, f"{self.source}: {self.prefix}{name}")

    def wrong(self, name: str, wanted: str, value: Any) -> NaiadError:
        """The error of a field."""
        shown = f"{value!r:.80}"
        return invalid(f"'{self.prefix}{name}' must be {wanted}, not {shown}", field=self.source)

    def _value(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise invalid(f"'{self.prefix}{name}' is missing", field=self.source)
        return value


def read_json(path: Path) -> Mapping[str, Any]:
    """A file with an object; NOT_FOUND or INVALID_ARG if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise not_found("it is not there", field=str(path)) from None
    except (ValueError, RecursionError, OSError) as error:
        raise invalid(f"it is not JSON: {error}", field=str(path)) from None
    if not isinstance(content, dict):
        raise invalid("it must hold an object", field=str(path))
    return content
