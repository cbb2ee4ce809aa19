"""A model's tokenizer: text to tokens and back, and the bytes of each token.

Wraps the `tokenizers` library. Knows nothing of files; `open_tokenizer` makes one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from naiad_backends.errors import invalid


def _bytes_of_characters() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: printable Latin-1 as it is, others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


BYTES = _bytes_of_characters()
"""The byte that a character of a byte-level vocabulary stands for."""


class Tokenizer:
    """The tokenizer of one model.

    specials: the texts of `bos_token`, `eos_token` and the like, for chat templates.
    eos: the tokens that end a text, as far as the tokenizer knows.
    vocab_size: one more than the largest token.
    Concurrency: any thread may call it.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, specials: Mapping[str, str], eos: frozenset[int]
    ) -> None:
        library.no_truncation()
        library.no_padding()
        self.library = library
        self.specials = specials
        self.eos = eos
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, what in added.items() if what.special)
        # Numbers may be left out: of tokens with one spelling only one is found.
        self.vocab_size = max(library.get_vocab().values(), default=-1) + 1
        self.spelling = Spelling.of(library)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. What spells a special token in it becomes that token."""
        try:
            return self.library.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise _not_text(text) from error

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The tokens of each text, on several cores."""
        try:
            encodings = self.library.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except TypeError as error:
            raise _not_text(*texts) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens. INVALID_ARG for one that the vocabulary does not have."""
        self.check(tokens)
        return self.library.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def check(self, tokens: Sequence[int]) -> None:
        """INVALID_ARG for a token that the vocabulary does not have."""
        for token in tokens:
            if not 0 <= token < 1 << 32 or self.library.id_to_token(token) is None:
                raise invalid(f"token {token} is not in the vocabulary of {self.vocab_size} tokens")

    def token(self, token: int) -> str:
        """The token as the vocabulary spells it; empty for one that it does not have."""
        return self.library.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text, exactly; nothing for one that the vocabulary does not
        have. It may be a part of a character."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self.spelling.bytes_of(self.token(token))
        return found

    def token_text(self, token: int) -> str:
        """The same as text, with U+FFFD for parts of characters."""
        return self.token_bytes(token).decode("utf-8", "replace")


def _not_text(*texts: object) -> Exception:
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        return invalid(f"a text must be a string, not {type(wrong).__name__}")
    return invalid("the text has half a surrogate pair, which no encoding of Unicode has")


class Spelling:
    """How a vocabulary spells bytes: byte by byte, or with a mark for each space.

    exact: whether the bytes of a token are the same wherever it stands; else only the library
        knows the text of tokens.
    strips: whether a text loses the space that it begins with.
    """

    def __init__(
        self,
        *,
        exact: bool,
        byte_level: bool = False,
        replaced: Sequence[tuple[str, str]] = (),
        byte_tokens: bool = False,
        strips: bool = False,
    ) -> None:
        self.exact = exact
        self.strips = strips
        self._byte_level = byte_level
        self._replaced = replaced
        self._byte_tokens = byte_tokens

    @staticmethod
    def of(library: tokenizers.Tokenizer) -> "Spelling":
        """Read from the library's decoder."""
        decoder = library.decoder
        steps = _steps(json.loads(decoder.__getstate__())) if decoder is not None else []
        if [step["type"] for step in steps] == ["ByteLevel"]:
            return Spelling(exact=True, byte_level=True)
        replaced, byte_tokens, strips, exact = [], False, False, bool(steps)
        for step in steps:
            match step:
                case {"type": "Replace", "pattern": {"String": str(mark)}, "content": str(content)}:
                    replaced.append((mark, content))
                case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme}:
                    replaced.append((mark, " "))
                    strips = scheme != "never"
                case {"type": "ByteFallback"}:
                    byte_tokens = True
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                    strips = True
                case {"type": "Fuse"}:
                    pass
                case _:
                    exact = False
        return Spelling(exact=exact, replaced=replaced, byte_tokens=byte_tokens, strips=strips)

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token that is spelled so."""
        if self._byte_level:
            try:
                return bytes([BYTES[character] for character in token])
            except KeyError:
                # A token that was added to the vocabulary as it reads.
                return token.encode()
        if self._byte_tokens and len(token) == 6 and token.startswith("<0x") and token[5] == ">":
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for mark, content in self._replaced:
            token = token.replace(mark, content)
        return token.encode()


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoders of a sequence, flat."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]
