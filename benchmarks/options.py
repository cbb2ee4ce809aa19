"""Values of the harness's command lines. Knows nothing of what they are for."""

import click

from benchmarks.errors import BenchmarkError

_UNITS = {"K": 1 << 10, "M": 1 << 20}


class CommaList(click.ParamType[list[str]]):
    """Values with commas between them, each one of `choices` if there are any."""

    name = "a,b"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self._choices = choices

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """The values; none for an empty text."""
        values = [each for each in value.split(",") if each]
        for each in values:
            if self._choices and each not in self._choices:
                self.fail(f"{each!r} is not one of {', '.join(self._choices)}", param, ctx)
        return values


def clients(text: str) -> int:
    """A number of clients. Raises BenchmarkError."""
    if not text.isdigit() or int(text) == 0:
        raise BenchmarkError(f"concurrency {text!r}: give a number of clients from 1 up")
    return int(text)


def size(text: str) -> int:
    """Bytes of a tensor, with K and M as powers of 1024. Raises BenchmarkError."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1] in _UNITS else (text, 1)
    if not number.isdigit() or int(number) * unit % 4:
        raise BenchmarkError(f"payload {text!r}: give a multiple of 4 bytes such as 64, 1K or 16M")
    return int(number) * unit
