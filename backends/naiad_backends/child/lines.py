"""Bytes that somebody prints as lines of text, and how many of them are let into a log.

Pure: knows no descriptor, no log and no clock.
"""

LIMIT = 8_192
"""Bytes of a line; what goes beyond is left out."""


LONGEST = 32_768
"""Characters of a text that is logged at once, such as a traceback."""


def clipped(text: str) -> str:
    """The text, or its beginning if it is longer than any that people read."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} ... {len(text) - LONGEST} more characters"


def weight(text: str) -> int:
    """For how many lines a text counts."""
    return 1 + len(text) // 1_024


class Lines:
    """Chunks of bytes in, lines out. Keeps no more than a line of `LIMIT` bytes."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lost = 0
        self._returned = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that end in this chunk, without their ends; UTF-8, with what is none replaced.

        What a carriage return takes the cursor back over is overwritten, as in a terminal: of a bar
        that shows progress the last state is left.
        """
        *ended, rest = chunk.split(b"\n")
        lines: list[str] = []
        for piece in ended:
            self._add(piece)
            lines.append(self._end())
        self._add(rest)
        return lines

    def skip(self, chunk: bytes) -> int:
        """How many lines end in this chunk; much quicker than to make them."""
        _, end, rest = chunk.rpartition(b"\n")
        if end:
            self._clear()
        self._add(rest)
        return chunk.count(b"\n")

    def close(self) -> list[str]:
        """The line that has not ended, if there is one."""
        return [self._end()] if self._kept or self._lost else []

    def _add(self, piece: bytes) -> None:
        first, *others = piece.split(b"\r")
        self._append(first)
        for other in others:
            self._returned = True
            self._append(other)

    def _append(self, text: bytes) -> None:
        if not text:
            return
        if self._returned:
            self._clear()
        room = LIMIT - len(self._kept)
        self._kept += text[:room]
        self._lost += max(len(text) - room, 0)

    def _end(self) -> str:
        kept, lost = bytes(self._kept), self._lost
        self._clear()
        if not lost:
            return kept.decode("utf-8", "replace")
        whole = _whole(kept)
        return f"{whole.decode('utf-8', 'replace')} ... {lost + len(kept) - len(whole)} more bytes"

    def _clear(self) -> None:
        self._kept.clear()
        self._lost = 0
        self._returned = False


def _whole(kept: bytes) -> bytes:
    """Without the beginning of a character that was cut."""
    for back in range(1, min(4, len(kept) + 1)):
        byte = kept[-back]
        if byte & 0xC0 != 0x80:
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return kept[:-back] if length > back else kept
    return kept


class Gate:
    """Lets a burst of lines through, and then only so many a second."""

    def __init__(self, burst: int = 1_000, rate: float = 200.0) -> None:
        """burst: lines at once.  rate: lines a second after that.

        Once it has shut it opens again when a second's worth has gathered, so that the word of what
        was left out comes once a second at most.
        """
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._at = 0.0
        self._shut = False
        self.left_out = 0

    def admits(self, now: float, weight: int = 1) -> bool:
        """Whether another line may be written; if not, it counts in `left_out`.

        now: seconds of any clock that does not go back.  weight: for how many lines it counts.
        """
        if self.shut(now):
            self.left_out += 1
            return False
        self._tokens -= weight
        return True

    def shut(self, now: float) -> bool:
        """Whether `admits` would say no, and so for all lines that come together with this one."""
        self._tokens = min(self._tokens + max(now - self._at, 0.0) * self._rate, self._burst)
        self._at = now
        enough = min(self._rate, self._burst) if self._shut else 1
        self._shut = self._tokens < enough
        return self._shut

    def leave_out(self, count: int) -> None:
        """So many lines were not even made, because it is shut."""
        self.left_out += count

    def take_left_out(self) -> int:
        """How many lines were left out since the last call; to be said before the next line."""
        count, self.left_out = self.left_out, 0
        return count
