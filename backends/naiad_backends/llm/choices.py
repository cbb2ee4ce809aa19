"""One text as it grows: tokens in, text out, and where it ends.

Knows nothing of requests, responses or engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from naiad_backends.llm.messages import Output, Scored
from naiad_backends.llm.parameters import Wishes
from naiad_backends.llm.text.detokenizer import Detokenizer
from naiad_backends.llm.text.stops import StopStrings
from naiad_backends.llm.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Piece:
    """What is new of a choice since the last one.

    finish: `stop`, `length`, `abort`, or empty while it goes on.  stop: the string or the token
    that ended it, None for the model's own end.
    scored: of `tokens`, or empty.  cumulative, count: the sum of all logprobs so far, all tokens.
    """

    index: int
    text: str
    finish: str
    stop: str | int | None
    tokens: Sequence[int]
    scored: Sequence[Scored]
    cumulative: float
    count: int


class Choice:
    """Takes what the engine says of one text, and keeps what nobody has read yet."""

    __slots__ = (
        "_bare",
        "_cumulative",
        "_detokenizer",
        "_end",
        "_finish",
        "_least",
        "_scored",
        "_stop",
        "_stops",
        "_text",
        "_tokens",
        "_without_end",
        "count",
        "index",
    )

    def __init__(
        self, index: int, tokenizer: Tokenizer, prompt: Sequence[int], wishes: Wishes, least: int
    ) -> None:
        """prompt: its tokens.  least: tokens before any stop string counts."""
        self.index = index
        self.count = 0
        """Tokens so far."""
        self._bare = wishes.max_tokens == 0
        self._end = tokenizer.eos
        self._without_end = not wishes.include_stop
        self._detokenizer = Detokenizer(tokenizer, prompt, wishes.skip_special_tokens)
        self._stops = StopStrings(wishes.stop, wishes.include_stop) if wishes.stop else None
        self._least = least
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._scored: list[Scored] = []
        self._cumulative = 0.0
        self._finish = ""
        self._stop: str | int | None = None

    def precede(self, text: str) -> None:
        """Put text before all that comes."""
        self._text.append(text)

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return bool(self._finish)

    @property
    def finish(self) -> str:
        """Why it has ended; empty while it goes on."""
        return self._finish

    def take(self, output: Output, tokens: bool) -> bool:
        """Add what a step has brought. tokens: they count as news also if they make no text yet.

        Returns whether there is news.
        """
        before = len(self._text)
        if not self._bare:
            self._add(output)
        if output.finish and not self._finish:
            self._close(output)
        return len(self._text) > before or bool(self._finish) or tokens

    def _add(self, output: Output) -> None:
        last = len(output.tokens) - 1
        for place, token in enumerate(output.tokens):
            self.count += 1
            self._tokens.append(token)
            if output.scored:
                scored = output.scored[place]
                self._scored.append(scored)
                self._cumulative += scored.token.logprob
            if place == last and output.stop is not None and self._without_end:
                return
            text = self._detokenizer.add(token)
            if text and self._write(text):
                return

    def _write(self, text: str) -> bool:
        """Whether a stop string is complete now."""
        matched = None
        if self._stops is not None and self.count > self._least:
            text, matched = self._stops.add(text)
        if text:
            self._text.append(text)
        if matched is not None:
            self._finish, self._stop = "stop", matched
        return matched is not None

    def _close(self, output: Output) -> None:
        """The engine has ended it: nothing is held back any more."""
        if not self._bare:
            rest = self._detokenizer.finish()
            if rest and self._write(rest):
                return
            if self._stops is not None and (rest := self._stops.finish()):
                self._text.append(rest)
        self._finish = output.finish if output.finish in ("stop", "length") else "abort"
        if output.stop is not None and output.stop not in self._end:
            self._stop = output.stop

    def read(self) -> Piece:
        """All that is new; the next one begins behind it."""
        piece = Piece(
            self.index,
            "".join(self._text),
            self._finish,
            self._stop,
            self._tokens,
            self._scored,
            self._cumulative,
            self.count,
        )
        self._text = []
        self._tokens = []
        self._scored = []
        return piece
