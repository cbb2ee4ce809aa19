"""The part of a text that its first or last tokens come from, without making all the others.

A text may be cut where an ASCII letter stands in front of a space, if nothing of a tokenizer's work
reaches over such a place: then either side has the tokens that it has in the whole. Whether that
holds is read off the parts of the `tokenizers` library's tokenizers. Texts of all others have to
become tokens as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models

from naiad_backends.errors import invalid
from naiad_backends.generation import TEXT_INPUT
from naiad_backends.llm.text.glance import parts
from naiad_backends.llm.text.pretokenizers import PRE_TOKENIZERS

MOST = 1 << 22
"""Characters of a text of which all tokens are made, however many are used: seconds."""

CHARACTERS = 8
"""Of a token, more than most have: a first guess."""

_OVER = re.compile(r"[A-Za-z][ \u2581]")
"""What a place looks like, to whatever would reach over one."""

_SPLITS = frozenset(split for way in PRE_TOKENIZERS.values() for split in way.splits)
"""Expressions none of whose matches has a letter in front of a space, or looks further than to
the character behind it."""

_LOCAL_CUTTERS = (
    *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace"),
    "WhitespaceSplit",
)
_LOCAL_NORMALIZERS = (
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "StripAccents"),
    "Strip",
)
"""Those that do with a character what they do with it anywhere, but for the ends of a text."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The first `most` tokens of a text, at least one; with `left` the last, because it is cut at
    the left."""

    most: int
    left: bool

    def of(self, tokens: Sequence[int], before: int = 0, behind: int = 0) -> Sequence[int]:
        """Those of the tokens. before, behind: how many at either end are the tokenizer's own; at
        the end where others go these stay."""
        spare = len(tokens) - self.most
        if spare <= 0:
            return tokens
        if self.left:
            kept = min(before, self.most)
            return [*tokens[:kept], *tokens[kept + spare :]]
        kept = min(behind, self.most)
        return [*tokens[: self.most - kept], *tokens[len(tokens) - kept :]]


class Cutter:
    """Cuts texts for one tokenizer."""

    def __init__(self, library: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> None:
        """vocabulary: its tokens, added ones included."""
        self._library = library
        self._able = _has_places(library, vocabulary)

    def part(self, text: str, cut: Cut) -> str:
        """A part that has as many tokens as are wanted, or more, and at that end the same as the
        whole text; or else all of it.

        Raises INVALID_ARG for a long text of which no such part is found.
        """
        size = cut.most * CHARACTERS
        longest = max(MOST, size)
        while self._able and size < min(len(text), longest):
            find = self._last if cut.left else self._first
            found = find(text, cut.most, size)
            if found:
                return found
            size *= 2
        if len(text) > longest:
            raise invalid(
                f"a text of {len(text)} characters is too long to be cut to a number of tokens",
                field=TEXT_INPUT,
                hint=f"send at most {longest} characters",
            )
        return text

    def _first(self, text: str, most: int, size: int) -> str:
        end = _place_before(text, size)
        part = text[:end]
        tokens = self._library.encode(part, add_special_tokens=False).ids
        return part if len(tokens) >= most else ""

    def _last(self, text: str, most: int, size: int) -> str:
        """The beginning of a text may be treated in a special way, such as to get a space: that is
        behind the first place, and what counts behind the second one."""
        begin = _place_behind(text, len(text) - size)
        inner = _place_behind(text, begin + 1)
        if not 0 <= begin < inner:
            return ""
        part = text[begin:]
        offsets = self._library.encode(part, add_special_tokens=False).offsets
        safe = len(offsets) >= most and offsets[-most][0] >= inner - begin
        return part if safe else ""


def _place_before(text: str, at: int) -> int:
    """Where the last place before `at` is; 0 for nowhere."""
    while at > 0:
        at = text.rfind(" ", 0, at)
        if at > 0 and _is_letter(text[at - 1]):
            return at
    return 0


def _place_behind(text: str, at: int) -> int:
    """Where the first place from `at` on is; -1 for nowhere."""
    at = text.find(" ", at)
    while at >= 0:
        if at and _is_letter(text[at - 1]):
            return at
        at = text.find(" ", at + 1)
    return -1


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _has_places(library: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> bool:
    """Whether nothing reaches over a place, for sure."""
    normalizers, cutters = parts(library.normalizer), parts(library.pre_tokenizer)
    for token in library.get_added_tokens_decoder().values():
        if _OVER.search(token.content) or (token.rstrip and _is_letter(token.content[-1:])):
            return False
    if not all(map(_is_local, normalizers)) or not all(map(_cuts_locally, cutters)):
        return False
    marks = [one for one in normalizers if one["type"] == "Replace"]
    if not marks and cutters and _cuts_at_places(library):
        return True
    return all(one["type"] == "Metaspace" for one in cutters) and _joins_none(
        library.model, vocabulary
    )


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    match normalizer:
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
            return True
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _cuts_locally(cutter: Mapping[str, Any]) -> bool:
    match cutter:
        case {"type": "Split", "pattern": {"Regex": str(split)}, "behavior": how, "invert": invert}:
            return split in _SPLITS and (how, invert) in (("Isolated", False), ("Removed", True))
    return cutter["type"] in _LOCAL_CUTTERS


def _cuts_at_places(library: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer cuts at places. One that does at one does at all."""
    pieces = library.pre_tokenizer.pre_tokenize_str("ab cd") if library.pre_tokenizer else []
    return any(end == 2 for _, (_, end) in pieces)


def _joins_none(model: models.Model, vocabulary: Mapping[str, int]) -> bool:
    """Whether a model that sees texts as a whole makes no token over a place, known or unknown."""
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    return "\u2581" in vocabulary and not any(map(_OVER.search, vocabulary))
