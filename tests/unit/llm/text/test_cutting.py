"""The first and last tokens of texts are those that the tokenizers library gives when it cuts."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.llm.text.test_glance import KNOWN, UNKNOWN, byte_level
from tests.unit.llm.text.vocabularies import byte_level_metadata, sentencepiece
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text.cutting import MOST, Cut
from naiad_backends.llm.text.gguf_tokenizer import gguf_tokenizer
from naiad_backends.llm.text.huggingface import folder_tokenizer
from naiad_backends.llm.text.pretokenizers import PRE_TOKENIZERS
from naiad_backends.llm.text.tokenizer import Tokenizer

PIECES = st.sampled_from(
    [
        *("ab", "a", "he", " he", "hello world", "l", "lo", "Z", "do n't", "'s", "'LL ", "bé", "é"),
        *(" ", "  ", "     ", "\n", " \n", "\r\n", "\t", "\u3000", "\u2581", "\u00a0"),
        *("1", "234", "56789", "!", "?!...", "--", "/", "_", "漢字", "ありがとう", "🌊"),
        *("\u0301", "\u200d", "\x00", "<s>", "</s>", "<|end|>", "<think>", "<swallow>", "[SEP]"),
        *("<|im_start|>", "<|im_end|>", "abc" * 50, "a b c d e f g h "),
    ]
)
TEXTS = st.lists(PIECES, max_size=120).map("".join)


def llama() -> Tokenizer:
    """SentencePiece's kind out of a tokenizer.json: no pre-tokenizer, spaces as marks."""
    made = sentencepiece()
    return Tokenizer(made.library, made.specials, made.eos)


def metaspace() -> Tokenizer:
    made = sentencepiece()
    made.library.normalizer = None
    made.library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return Tokenizer(made.library, made.specials, made.eos)


def joining() -> Tokenizer:
    """One of its tokens reaches over a place."""
    vocabulary = {
        token: number for number, token in enumerate(["<unk>", "a", "b", "▁", "b▁", "b▁a"])
    }
    library = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("b", "▁"), ("b▁", "a")], unk_token="<unk>", fuse_unk=True)
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    return Tokenizer(library, {}, frozenset())


def odd() -> Tokenizer:
    """Cuts in a way that nobody knows, which depends on the whole text."""
    made = byte_level()
    made.library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("h(?=(?:[^h]*h[^h]*h)*[^h]*$)"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Tokenizer(made.library, {}, frozenset())


def way(name: str) -> Tokenizer:
    """One that cuts texts into words in the way of this name."""
    return gguf_tokenizer(byte_level_metadata(pre=name))


CUT: dict[str, Callable[[], Tokenizer]] = {
    name: KNOWN[name]
    for name in ("byte level", "composing", "swallowing spaces", "sentencepiece", "words")
} | {
    "stripping": UNKNOWN["stripping"],
    "without bytes": UNKNOWN["without bytes"],
    "metaspace": metaspace,
    "llama": llama,
    "prefix space": lambda: gguf_tokenizer(byte_level_metadata(add_space_prefix=True)),
    **{
        name: partial(way, name)
        for name in dict.fromkeys(
            next(name for name, other in PRE_TOKENIZERS.items() if other == one)
            for one in PRE_TOKENIZERS.values()
        )
    },
}
"""Those whose texts are cut before they are tokens."""

WHOLE: dict[str, Callable[[], Tokenizer]] = {
    **{name: make for name, make in UNKNOWN.items() if name not in CUT},
    "words by scores": KNOWN["words by scores"],
    "joining": joining,
    "odd": odd,
    "a token of two words": lambda: byte_level(None, AddedToken("he lo")),
    "a word that swallows": lambda: byte_level(None, AddedToken("lo", rstrip=True)),
}
"""Those of which nothing is known, or that reach over places."""


@cache
def made(name: str) -> tuple[Tokenizer, str]:
    tokenizer = (CUT | WHOLE)[name]()
    return tokenizer, tokenizer.library.to_str()


def expected(library: str, text: str, most: int, left: bool, special: bool) -> list[int]:
    """What the library itself gives."""
    reference = tokenizers.Tokenizer.from_str(library)
    reference.enable_truncation(most, direction="left" if left else "right")
    return reference.encode(text, add_special_tokens=special).ids


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
@given(text=TEXTS, most=st.integers(1, 12), left=st.booleans(), special=st.booleans())
@settings(deadline=None, max_examples=20)
def test_they_are_those_of_the_library(
    name: str, text: str, most: int, left: bool, special: bool
) -> None:
    tokenizer, library = made(name)
    if special:
        most += sum(tokenizer.frame)
    found = tokenizer.encode_cut(text, Cut(most, left), special)
    assert list(found) == expected(library, text, most, left, special)


@given(text=TEXTS, most=st.integers(1, 12), left=st.booleans())
@settings(deadline=None, max_examples=100)
def test_they_are_those_of_a_real_model(
    smollm2: Tokenizer, text: str, most: int, left: bool
) -> None:
    wanted = expected(smollm2.library.to_str(), text, most, left, False)
    assert list(smollm2.encode_cut(text, Cut(most, left), False)) == wanted


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", CUT)
def test_a_small_part_of_a_long_text_becomes_tokens(name: str, left: bool) -> None:
    tokenizer, _ = made(name)
    text = "hello world, ab ab 12 ab? " * 300_000
    assert len(tokenizer.part(text, Cut(10, left))) < 1_000


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", WHOLE)
def test_a_long_text_is_refused_if_it_cannot_be_cut(name: str, left: bool) -> None:
    tokenizer, _ = made(name)
    with pytest.raises(NaiadError, match="too long to be cut") as caught:
        tokenizer.part("hello world " * (MOST // 10), Cut(10, left))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "text_input")


def test_a_long_text_without_places_is_refused(smollm2: Tokenizer) -> None:
    with pytest.raises(NaiadError, match="too long to be cut"):
        smollm2.part("x" * (MOST + 1), Cut(10, True))


def test_half_a_pair_is_no_text(smollm2: Tokenizer) -> None:
    for text in ("\ud800", "sea " * 100 + "\ud800", "\ud800" + " sea" * 100):
        for left in (True, False):
            with pytest.raises(NaiadError):
                smollm2.encode_cut("sea " * 9 + text + " sea" * 9, Cut(200, left))


@pytest.mark.parametrize("left", [True, False])
def test_the_tokenizers_own_tokens_stay(example_repository: Path, left: bool) -> None:
    tokenizer = folder_tokenizer(example_repository / "minilm_text" / "1")
    assert tokenizer.frame == (1, 1)
    tokens = tokenizer.encode("one two three four five")
    cut = tokenizer.encode_cut("one two three four five", Cut(4, left))
    assert list(cut) == ([tokens[0], *tokens[-3:]] if left else [*tokens[:3], tokens[-1]])
    few = tokenizer.encode_cut("one two", Cut(1, left))
    assert list(few) == ([tokens[0]] if left else [tokens[-1]])
