"""Text from tokens as they come, whole characters only.

Knows of tokenizers how they spell bytes. The sum of what it gives is what decoding all tokens after
their prompt at once would give; where byte tokens make no text in UTF-8, each broken part is one
U+FFFD.
"""

import codecs
from collections.abc import Sequence

from naiad_backends.llm.text.tokenizer import Tokenizer

_LONGEST = 4
"""Bytes of a character in UTF-8; tokens that may hold the beginning of one."""

_WINDOW = 8
"""Tokens of the prompt that say how a text goes on after it, where only the library knows."""


class Detokenizer:
    """The text of one choice."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special_tokens: bool = True
    ) -> None:
        skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._text = (
            _Bytes(tokenizer, prompt, skipped)
            if tokenizer.spelling.exact
            else _Window(tokenizer, prompt, skipped)
        )

    def add(self, token: int) -> str:
        """The text that the token completes; empty while a character is incomplete."""
        return self._text.add(token)

    def finish(self) -> str:
        """What an incomplete character leaves behind at the end."""
        return self._text.finish()


class _Bytes:
    """Where each token has bytes of its own, whatever is around it."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], skipped: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.spelling.strips and skipped.issuperset(prompt)
        tail = [token for token in prompt[-_LONGEST:] if token not in skipped]
        self._decoder.decode(b"".join(map(tokenizer.token_bytes, tail)))

    def add(self, token: int) -> str:
        if token in self._skipped:
            return ""
        text = self._decoder.decode(self._tokenizer.token_bytes(token))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


class _Window:
    """Where only the library knows: decode the last tokens again and again.

    `_tokens[:_given]` is what the text that went out last came from.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], skipped: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = bool(skipped)
        self._tokens = list(prompt[-_WINDOW:])
        self._given = len(self._tokens)

    def add(self, token: int) -> str:
        self._tokens.append(token)
        before, text = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        if len(text) <= len(before) or (text.endswith("�") and self._waits):
            return ""
        self._tokens, self._given = self._tokens[self._given :], len(self._tokens) - self._given
        return text[len(before) :]

    def finish(self) -> str:
        before, text = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        return text[len(before) :]

    @property
    def _waits(self) -> bool:
        """Whether the last tokens may still become a character."""
        return len(self._tokens) - self._given < _LONGEST

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.library.decode(list(tokens), skip_special_tokens=self._skip)
