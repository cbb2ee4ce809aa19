"""How long a text is at a glance: whether it has too many tokens for sure, without making them.

Two things can be known of a tokenizer. Either it loses nothing, so that a token stands for no more
characters than its spelling has; or it cuts texts at spaces, so that each word is a token at least.
Of any other tokenizer nothing is known. Reads the parts of the `tokenizers` library's tokenizers.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import tokenizers
from tokenizers import models

from naiad_backends.llm.text.spelling import BYTES

Exceeds = Callable[[str, int], bool]
"""Whether a text has more than so many tokens. False may be wrong, True is not."""

_COMPOSED = 4
"""The most characters that one character of a composed form stands for (Unicode, annex 15)."""

_FORMS = {"NFC": _COMPOSED, "NFKC": _COMPOSED, "NFD": 1, "NFKD": 1, "Lowercase": 1, "Prepend": 1}
"""Normalizers that lose no character, and how many of them may become one."""

_KEEPERS = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")
"""Pre-tokenizers that cut a text and lose nothing, unless they remove what they cut at."""

_HARMLESS = ("BertNormalizer", "Precompiled", "Strip", "StripAccents", *_FORMS)
"""Normalizers that leave something of a word of ASCII letters, and the space behind it."""

_ASCII, _LATER = frozenset(range(0x80)), frozenset(range(0x80, 0xC0))
"""Bytes of UTF-8: characters of their own, and those behind a first byte."""

_CUTTERS = ("BertPreTokenizer", "WhitespaceSplit", "Whitespace")

_WORD = re.compile(r"[0-9A-Za-z][^ \t\n\r]*")
_SPACES = re.compile(r"[ {},0-9+]*")


def glance_of(library: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> Exceeds:
    """What can be known of texts for a tokenizer. vocabulary: its tokens, added ones included."""
    normalizers, cutters = parts(library.normalizer), parts(library.pre_tokenizer)
    added = library.get_added_tokens_decoder().values()
    covers = _covers(library.model, vocabulary, normalizers, cutters)
    lost = _lost(library.model, vocabulary, cutters)
    if covers and lost is not None:
        # Such a token takes the spaces beside it, however many.
        swallows = any(token.lstrip or token.rstrip for token in added)
        return partial(_has_more_characters, covers, lost, swallows)
    spaced = any(len(token.content.split()) > 1 for token in added)
    if _cuts(library.model, normalizers, cutters) and not spaced:
        return _has_more_words
    return lambda text, most: False


def _has_more_characters(covers: int, lost: str, swallows: bool, text: str, most: int) -> bool:
    """covers: characters for each token.  lost: those that become nothing.
    swallows: spaces may become nothing."""
    if len(text) <= most * covers:
        return False
    kept = sum(map(len, text.split())) if swallows else len(text)
    return kept - sum(map(text.count, lost)) > most * covers


def _has_more_words(text: str, most: int) -> bool:
    return next(islice(_WORD.finditer(text), most, None), None) is not None


def _covers(
    model: models.Model,
    vocabulary: Mapping[str, int],
    normalizers: list[dict[str, Any]],
    cutters: list[dict[str, Any]],
) -> int:
    """The most characters of a text that one token stands for; 0 if that is not known."""
    if not isinstance(model, models.BPE):
        return 0
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return 0
    if any(cutter["type"] not in _KEEPERS or _removes(cutter) for cutter in cutters):
        return 0
    factor = math.prod(
        1 if _grows(normalizer) else _FORMS.get(normalizer["type"], 0) for normalizer in normalizers
    )
    return factor * max(map(len, vocabulary), default=0)


def _lost(
    model: models.Model, vocabulary: Mapping[str, int], cutters: list[dict[str, Any]]
) -> str | None:
    """The characters that have no token, and so become nothing; None if there may be others."""
    if any(cutter["type"] == "ByteLevel" for cutter in cutters):
        missing = {byte for spelt, byte in BYTES.items() if spelt not in vocabulary}
        # A character of several bytes is there as long as the last of them is.
        return None if missing & _LATER else "".join(map(chr, missing & _ASCII))
    if isinstance(model, models.BPE) and model.byte_fallback:
        return "" if {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.keys() else None
    # Any number of such characters may become one token.
    return None


def _removes(cutter: Mapping[str, Any]) -> bool:
    return cutter.get("behavior") == "Removed"


def _grows(normalizer: Mapping[str, Any]) -> bool:
    """Whether it replaces a string by one that is not shorter."""
    match normalizer:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return 0 < len(old) <= len(new)
    return False


def _cuts(
    model: models.Model, normalizers: list[dict[str, Any]], cutters: list[dict[str, Any]]
) -> bool:
    """Whether each word of a text is a token at least."""
    if not isinstance(model, models.WordPiece | models.Unigram):
        return False
    return any(map(_at_spaces, cutters)) and all(map(_leaves_words, normalizers))


def _at_spaces(cutter: Mapping[str, Any]) -> bool:
    return cutter["type"] in _CUTTERS or (cutter["type"] == "Metaspace" and cutter["split"])


def _leaves_words(normalizer: Mapping[str, Any]) -> bool:
    match normalizer:
        case {"type": "Replace", "pattern": {"Regex": str(spaces)}, "content": str(content)}:
            return content == " " and _SPACES.fullmatch(spaces) is not None
    return normalizer["type"] in _HARMLESS


def parts(part: Any) -> list[dict[str, Any]]:
    """A normalizer or a pre-tokenizer as what it is made of, flat."""
    return [] if part is None else _flat(json.loads(part.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    return [part for each in inner for part in _flat(each)] if inner else [step]
