"""Stop strings in a text that comes in pieces.

The one that is complete first ends the text, wherever the pieces are cut; of those that are
complete at the same character the longest. Knows nothing of tokens.
"""

from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """The stop strings of one choice. include: leave the one that is found in the text."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """stops: none of them empty."""
        self._stops = [_Stop(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._firsts = {stop.text[0] for stop in self._stops}
        self._include = include
        self._held = ""

    def add(self, text: str) -> tuple[str, str | None]:
        """What may go out, and the stop string that was found: the text ends before it.

        Held back is the longest end that a stop string begins with. Nothing may be added after a
        stop string was found.
        """
        if not self._held and self._firsts.isdisjoint(text):
            return text, None
        whole = self._held + text
        for at in range(len(self._held), len(whole)):
            # All of them have to see the character.
            found = [stop.text for stop in self._stops if stop.step(whole[at])]
            if found:
                self._held = ""
                return whole[: at + 1 - (0 if self._include else len(found[0]))], found[0]
        free = len(whole) - max(stop.matched for stop in self._stops)
        self._held = whole[free:]
        return whole[:free], None

    def finish(self) -> str:
        """What was held back, at the end of a text without a stop string."""
        held, self._held = self._held, ""
        return held


class _Stop:
    """How much of one stop string the text ends with (Knuth, Morris and Pratt).

    matched: characters.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = _shorter(text)

    def step(self, character: str) -> bool:
        """Whether the character completes the stop string."""
        self.matched = _next(self.text, self._shorter, self.matched, character)
        return self.matched == len(self.text)


@lru_cache(maxsize=32)
def _shorter(text: str) -> Sequence[int]:
    """For each length of a match the next shorter one that the text then ends with too. All choices
    of a request share them."""
    shorter = [0, 0]
    for character in text[1:]:
        shorter.append(_next(text, shorter, shorter[-1], character))
    return shorter


def _next(text: str, shorter: Sequence[int], matched: int, character: str) -> int:
    """How much is matched after one more character."""
    while matched and text[matched] != character:
        matched = shorter[matched]
    return matched + (text[matched] == character)
