"""How a vocabulary spells the bytes that its tokens stand for.

Reads the decoders of the `tokenizers` library. Knows nothing of texts.
"""

import json
from collections.abc import Sequence
from typing import Any

import tokenizers


def _bytes_of_characters() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: printable Latin-1 as it is, others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


BYTES = _bytes_of_characters()
"""The byte that a character of a byte-level vocabulary stands for."""


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
