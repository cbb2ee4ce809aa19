"""What is said of a text's length at a glance is true, and said of texts that are far too long."""

from collections.abc import Callable
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.llm.text.vocabularies import byte_level_metadata, sentencepiece, wordpiece
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from naiad_backends.llm.text.gguf_tokenizer import gguf_tokenizer
from naiad_backends.llm.text.tokenizer import Tokenizer

SWALLOWER = AddedToken("<swallow>", lstrip=True, rstrip=True, special=True)


def byte_level(
    normalizer: normalizers.Normalizer | None = None, *added: AddedToken, without: str = ""
) -> Tokenizer:
    """GPT-2's kind, changed. without: bytes that have no token, as they are spelt."""
    alphabet = [each for each in pre_tokenizers.ByteLevel.alphabet() if each not in without]
    vocabulary = {token: number for number, token in enumerate([*alphabet, "he", "ĠĠ"])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [("h", "e"), ("Ġ", "Ġ")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        library.normalizer = normalizer
    library.add_tokens(list(added))
    return Tokenizer(library, {}, frozenset())


def unigram(*added: AddedToken) -> Tokenizer:
    """XLM-RoBERTa's kind: unknown characters side by side are one token."""
    scores = [("<unk>", 0.0), ("▁", -2.0), ("▁he", -1.0), ("l", -3.0), ("o", -3.0)]
    library = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    library.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.NFKC()]
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    library.add_tokens(list(added))
    return Tokenizer(library, {}, frozenset())


def removing() -> Tokenizer:
    """Spaces are not there any more."""
    made = byte_level()
    made.library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return Tokenizer(made.library, {}, frozenset())


def fusing() -> Tokenizer:
    """Any number of unknown characters is one token."""
    model = models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True)
    return Tokenizer(tokenizers.Tokenizer(model), {}, frozenset())


KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level of a GGUF file": lambda: gguf_tokenizer(byte_level_metadata()),
    "composing": lambda: byte_level(normalizers.NFC()),
    "composing after a change": lambda: byte_level(
        normalizers.Sequence([normalizers.Prepend("_"), normalizers.NFKC()])
    ),
    "swallowing spaces": lambda: byte_level(None, SWALLOWER),
    "without some control characters": lambda: byte_level(without="ĀĄl"),
    "sentencepiece": sentencepiece,
    "words": wordpiece,
    "words by scores": unigram,
}

UNKNOWN: dict[str, Callable[[], Tokenizer]] = {
    "stripping": lambda: byte_level(normalizers.Strip()),
    "replacing": lambda: byte_level(normalizers.Replace("ab", "")),
    "replacing by an expression": lambda: byte_level(normalizers.Replace(Regex("a+"), "a")),
    "without bytes": lambda: byte_level(without="¢"),
    "with a token of two words": lambda: unigram(AddedToken("he he")),
    "removing": removing,
    "fusing": fusing,
}

MADE = {name: cache(make) for name, make in {**KNOWN, **UNKNOWN}.items()}

_LATIN = (
    "he|hello| |    |\t|\n|\x00|\x04|\u00e9|e\u0301|<swallow>|he he|ab|aaaaaaaaa|llllllllllllllllll"
)
_OTHERS = "\u1112\u1161\u11ab|\uac00|\u03b1\u0313\u0300\u0345|\U0001f30a|\u6f22"
PIECES = st.sampled_from([*_LATIN.split("|"), *_OTHERS.split("|")])
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=30).map("".join)


@pytest.mark.parametrize("name", MADE)
@given(text=TEXTS)
@settings(max_examples=60)
def test_it_never_says_too_much(name: str, text: str) -> None:
    tokenizer = MADE[name]()
    count = len(tokenizer.encode(text, add_special_tokens=False))
    assert not tokenizer.exceeds(text, count)


@pytest.mark.parametrize("name", KNOWN)
def test_long_texts_are_seen(name: str) -> None:
    assert MADE[name]().exceeds("hello world " * 2_000, 150)


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_said_where_nothing_is_known(name: str) -> None:
    assert not MADE[name]().exceeds("hello world " * 2_000, 150)


@given(text=TEXTS)
def test_a_real_tokenizer(smollm2: Tokenizer, text: str) -> None:
    assert not smollm2.exceeds(text, len(smollm2.encode(text)))
    assert smollm2.exceeds(text + "sea " * 5_000, 200)
