"""Tokenizers from GGUF metadata: equal to those of others, and errors where it is broken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.llm.text.vocabularies import (
    NORMAL,
    USER_DEFINED,
    byte_level_metadata,
    metadata,
    sentencepiece,
    sentencepiece_metadata,
    wordpiece,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text.gguf_tokenizer import gguf_templates, gguf_tokenizer
from naiad_backends.llm.text.tokenizer import Tokenizer

SAMPLES = "ab é漢😀👩‍👩‍👧ﷺ½Ⅷ\n\r\t \xa0\x00'sll123<|im_end|>"
TEXTS = st.lists(st.text() | st.text(st.sampled_from(SAMPLES)) | st.just("<|im_start|>")).map(
    "".join
)


@pytest.fixture(scope="module")
def reference(smollm2_file: Path) -> tokenizers.Tokenizer:
    """As transformers builds it, cut into words as the model's own tokenizer.json says."""
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, parts, _ = get_gguf_tokenizer(str(smollm2_file))
    library: tokenizers.Tokenizer = convert_gguf_tokenizer(architecture, parts)[0]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return library


class TestSmolLM2:
    @given(text=TEXTS)
    @settings(max_examples=300)
    def test_tokens_and_text_are_those_of_transformers(
        self, smollm2: Tokenizer, reference: tokenizers.Tokenizer, text: str
    ) -> None:
        tokens = smollm2.encode(text)

        assert tokens == reference.encode(text, add_special_tokens=False).ids
        for skip in (True, False):
            assert smollm2.decode(tokens, skip) == reference.decode(tokens, skip)

    @given(text=st.text())
    def test_bytes_of_tokens_make_the_text(self, smollm2: Tokenizer, text: str) -> None:
        tokens = smollm2.encode(text)

        joined = b"".join(map(smollm2.token_bytes, tokens))

        # Its vocabulary misses a few bytes, which are lost.
        assert joined.decode("utf-8", "replace") == smollm2.decode(tokens)
        assert len(joined) <= len(text.encode())

    def test_special_tokens_have_their_roles(self, smollm2: Tokenizer) -> None:
        assert smollm2.vocab_size == 49152
        assert smollm2.eos == {2}
        assert smollm2.specials["eos_token"] == "<|im_end|>"
        assert smollm2.encode("<|im_start|>user\nHi<|im_end|>\n") == [1, 4093, 198, 26843, 2, 198]
        assert smollm2.decode([1, 26843, 2], skip_special_tokens=True) == "Hi"

    def test_a_batch_is_its_texts(self, smollm2: Tokenizer) -> None:
        texts = ["", "a", "Hello world " * 50]

        assert smollm2.encode_batch(texts) == [smollm2.encode(text) for text in texts]

    @pytest.mark.parametrize("text", ["\ud800", 5, None])
    def test_what_is_no_text_is_refused(self, smollm2: Tokenizer, text: Any) -> None:
        for call in (lambda: smollm2.encode(text), lambda: smollm2.encode_batch(["a", text])):
            with pytest.raises(NaiadError) as caught:
                call()
            assert caught.value.code == Code.INVALID_ARG

    @pytest.mark.parametrize("token", [-1, 49152, 1 << 40])
    def test_tokens_that_there_are_not_are_refused(self, smollm2: Tokenizer, token: int) -> None:
        with pytest.raises(NaiadError, match=f"token {token} is not in the vocabulary"):
            smollm2.decode([1, token])
        assert smollm2.token_bytes(49152) == b""


class TestSentencePiece:
    @given(text=st.text(st.sampled_from("ab cé漢😀\n▁")))
    def test_tokens_are_those_that_the_library_builds_from_its_own_parts(self, text: str) -> None:
        """Merges by score are those of ranks; the rest as in Llama 2's tokenizer.json."""
        ids = {t: n for n, t in enumerate(sentencepiece_metadata()["tokenizer.ggml.tokens"])}
        merges = [("▁", "ab"), ("▁a", "b"), ("a", "b"), ("▁", "a"), ("b", "é"), ("▁", "▁")]
        reference = tokenizers.Tokenizer(
            models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        reference.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )

        assert sentencepiece().encode(text) == [1, *reference.encode(text).ids]

    def test_the_space_before_the_text_is_optional(self) -> None:
        with_space, without = sentencepiece(), sentencepiece(add_space_prefix=False)

        assert [with_space.token(t) for t in with_space.encode("ab")] == ["<s>", "▁ab"]
        assert [without.token(t) for t in without.encode("ab")] == ["<s>", "ab"]
        assert with_space.decode(with_space.encode("ab"), skip_special_tokens=True) == "ab"
        assert without.decode(without.encode(" ab"), skip_special_tokens=True) == " ab"

    def test_bytes_of_tokens(self) -> None:
        tokenizer = sentencepiece()
        found = [tokenizer.library.token_to_id(t) for t in ("▁ab", "<0xF0>", "é", "</s>")]

        assert [tokenizer.token_bytes(token or 0) for token in found] == [
            b" ab",
            b"\xf0",
            "é".encode(),
            b"</s>",
        ]

    def test_flags_say_what_stands_around_a_text(self) -> None:
        text = "ab"
        both = sentencepiece(add_eos_token=True)
        none = sentencepiece(add_bos_token=False)

        assert both.encode(text)[0::2] == [1, 2]
        assert none.encode(text) == both.encode(text, add_special_tokens=False)


def test_wordpiece_marks_the_beginnings_of_words() -> None:
    tokenizer = wordpiece()

    tokens = tokenizer.encode("Héllo worlds, ﬀ")

    assert [tokenizer.token(token) for token in tokens] == [
        "[CLS]", "hello", "world", "##s", "[UNK]", "[UNK]", "[SEP]",
    ]  # fmt: skip
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hello worlds"


def test_user_defined_tokens_are_found_and_stay_in_the_text() -> None:
    tokenizer = gguf_tokenizer(byte_level_metadata())

    tokens = tokenizer.encode("ab<think> ab<|end|>")

    assert [tokenizer.token(t) for t in tokens] == ["ab", "<think>", "Ġab", "<|end|>"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "ab<think> ab"


def test_of_tokens_with_one_spelling_the_last_is_found() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"] += ["<think>"]
    metadata["tokenizer.ggml.token_type"] += [USER_DEFINED]
    tokenizer = gguf_tokenizer(metadata)

    assert tokenizer.vocab_size == 261
    assert tokenizer.encode("<think>") == [260]
    assert tokenizer.token_bytes(259) == b""


def test_all_end_tokens_end_a_text() -> None:
    tokenizer = gguf_tokenizer(byte_level_metadata(eot_token_id=5, eom_token_id=6))

    assert tokenizer.eos == {258, 5, 6}


def test_a_whole_tokenizer_in_the_file_is_used() -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.Fuse()
    whole = {**byte_level_metadata(), "tokenizer.huggingface.json": library.to_str()}

    assert gguf_tokenizer(whole).encode("b a b") == [1, 0, 1]


def test_templates_have_names() -> None:
    keys = {"": "one", ".tool_use": "two", "s": ["tool_use"]}
    metadata = {f"tokenizer.chat_template{end}": value for end, value in keys.items()}

    assert gguf_templates(metadata) == {"default": "one", "tool_use": "two"}


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"model": "rwkv"}, Code.UNSUPPORTED, "tokenizers of the kind 'rwkv'"),
        ({"model": None}, Code.UNSUPPORTED, "tokenizers of the kind None"),
        ({"pre": "who-knows"}, Code.UNSUPPORTED, "the pre-tokenizer 'who-knows'"),
        ({"tokens": None}, Code.INVALID_ARG, "not a list of strings"),
        ({"tokens": []}, Code.INVALID_ARG, "the vocabulary is empty"),
        ({"tokens": ["a", 5]}, Code.INVALID_ARG, "not a list of strings"),
        ({"token_type": [1]}, Code.INVALID_ARG, "has 1 entries for 260 tokens"),
        ({"token_type": "x" * 260}, Code.INVALID_ARG, "not a list of numbers"),
        ({"scores": np.zeros(3)}, Code.INVALID_ARG, "has 3 entries for 260 tokens"),
        ({"merges": ["a b", "a zz"]}, Code.INVALID_ARG, "out of vocabulary"),
        ({"merges": ["b a"]}, Code.INVALID_ARG, "out of vocabulary"),
        ({"merges": ["a b", "ab"]}, Code.INVALID_ARG, "merge 1, 'ab', is not two tokens"),
        ({"merges": None}, Code.INVALID_ARG, "not a list of strings"),
        ({"eos_token_id": 260}, Code.INVALID_ARG, "260 is not one of 260 tokens"),
        ({"bos_token_id": -1}, Code.INVALID_ARG, "-1 is not one of 260 tokens"),
        ({"bos_token_id": "a"}, Code.INVALID_ARG, "'a' is not one of 260 tokens"),
        ({"add_bos_token": "yes"}, Code.INVALID_ARG, "'yes' is not a boolean"),
    ],
)
def test_broken_metadata_is_refused(fields: dict[str, Any], code: Code, said: str) -> None:
    with pytest.raises(NaiadError) as caught:
        gguf_tokenizer(byte_level_metadata(**fields))

    assert (caught.value.code, said in caught.value.message) == (code, True), caught.value
    assert caught.value.field.startswith("tokenizer.ggml")


@pytest.mark.parametrize("missing", ["scores", "merges"])
def test_a_vocabulary_needs_merges_or_scores(missing: str) -> None:
    metadata = sentencepiece_metadata()
    del metadata["tokenizer.ggml.scores"]

    with pytest.raises(NaiadError, match="neither merges nor scores"):
        gguf_tokenizer(metadata)


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@given(
    model=st.sampled_from(["gpt2", "llama", "bert", "t5", "gemma4"]),
    base=st.sampled_from([byte_level_metadata(), sentencepiece_metadata()]),
    changes=st.dictionaries(
        st.sampled_from(
            [
                *(f"tokenizer.ggml.{name}" for name in (
                    "pre", "tokens", "token_type", "scores", "merges", "unknown_token_id",
                    "bos_token_id", "add_bos_token", "precompiled_charsmap", "add_space_prefix",
                )),
                "tokenizer.huggingface.json",
            ]
        ),
        JUNK | st.lists(JUNK, max_size=4) | st.binary(max_size=8),
        max_size=3,
    ),
)  # fmt: skip
def test_junk_in_metadata_is_an_error_of_ours_or_a_tokenizer(
    model: str, base: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        tokenizer = gguf_tokenizer({**base, **changes, "tokenizer.ggml.model": model})
    except NaiadError as error:
        assert error.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    else:
        assert isinstance(tokenizer.encode("ab 漢"), list)


def unigram_metadata(**fields: Any) -> dict[str, Any]:
    """T5's kind, without a token for what it does not know."""
    return metadata("t5", [("a", NORMAL), ("▁", NORMAL)], scores=[-1.0, -2.0], **fields)


def test_a_text_that_the_library_fails_on_is_refused() -> None:
    tokenizer = gguf_tokenizer(unigram_metadata())
    assert tokenizer.encode("a") == [1, 0]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(NaiadError, match="cannot read the text") as caught:
            encode("b")
        assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "text_input")


def test_a_tokenizer_that_makes_the_library_panic_is_refused() -> None:
    with pytest.raises(NaiadError, match="cannot read the text"):
        gguf_tokenizer(unigram_metadata(precompiled_charsmap=np.array([1, 2], np.int32)))
