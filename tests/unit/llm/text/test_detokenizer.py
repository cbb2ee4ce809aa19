"""Text as tokens come: whole characters, and in sum what decoding all at once gives."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.llm.text.vocabularies import sentencepiece

from naiad_backends.llm.text.detokenizer import Detokenizer
from naiad_backends.llm.text.tokenizer import Tokenizer

SENTENCEPIECE = sentencepiece()
TEXTS = st.text(st.sampled_from("ab é漢😀👩‍👩‍👧ﷺ\n\t <|im_end|>"), max_size=30)


def pieces(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], skip: bool = True
) -> list[str]:
    """What each token gives, and the end."""
    detokenizer = Detokenizer(tokenizer, prompt, skip)
    return [*map(detokenizer.add, tokens), detokenizer.finish()]


class TestSmolLM2:
    @given(tokens=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
    @example(tokens=[2, 1, 0], skip=True)
    def test_the_sum_is_what_decoding_all_at_once_gives(
        self, smollm2: Tokenizer, tokens: list[int], skip: bool
    ) -> None:
        out = pieces(smollm2, [1, 2], tokens, skip)

        assert "".join(out) == smollm2.decode(tokens, skip)

    @given(text=TEXTS)
    def test_text_comes_back_in_whole_characters(self, smollm2: Tokenizer, text: str) -> None:
        tokens = smollm2.encode(text)

        out = pieces(smollm2, [1], tokens, skip=False)

        assert "".join(out) == text
        assert not any("�" in piece for piece in out)

    def test_an_unfinished_character_becomes_a_replacement_at_the_end(
        self, smollm2: Tokenizer
    ) -> None:
        tokens = smollm2.encode("😀")
        assert len(tokens) > 1

        assert pieces(smollm2, [1], tokens[:-1]) == [*[""] * (len(tokens) - 1), "�"]

    def test_a_character_that_the_prompt_has_begun_is_completed(self, smollm2: Tokenizer) -> None:
        tokens = smollm2.encode("😀")

        assert pieces(smollm2, tokens[:-1], tokens[-1:]) == ["😀", ""]

    def test_a_token_beyond_the_vocabulary_is_no_text(self, smollm2: Tokenizer) -> None:
        assert pieces(smollm2, [1], [49152, 10**6]) == ["", "", ""]


class TestSentencePiece:
    @given(text=TEXTS)
    def test_text_comes_back_in_whole_characters(self, text: str) -> None:
        tokens = SENTENCEPIECE.encode(text, add_special_tokens=False)

        out = pieces(SENTENCEPIECE, [], tokens, skip=False)

        assert "".join(out) == SENTENCEPIECE.decode(tokens)
        assert not any("�" in piece for piece in out)

    def test_the_first_space_stays_behind_a_prompt_and_goes_without_one(self) -> None:
        tokens = SENTENCEPIECE.encode("ab ab", add_special_tokens=False)
        bos = SENTENCEPIECE.encode("")

        assert "".join(pieces(SENTENCEPIECE, bos, tokens)) == "ab ab"
        assert "".join(pieces(SENTENCEPIECE, [*bos, tokens[0]], tokens)) == " ab ab"

    def test_stray_bytes_do_not_swallow_what_follows(self) -> None:
        byte = SENTENCEPIECE.library.token_to_id
        tokens = [byte(name) for name in ("<0xF0>", "<0x9F>", "a", "<0xFF>", "b")]

        assert pieces(SENTENCEPIECE, [1, 5], [t for t in tokens if t is not None]) == [
            "",
            "",
            "�a",
            "�",
            "b",
            "",
        ]


@pytest.mark.parametrize("skip", [True, False])
def test_where_only_the_library_knows_the_text_it_is_asked(skip: bool) -> None:
    from tests.unit.llm.text.vocabularies import wordpiece

    tokenizer = wordpiece()
    tokens = tokenizer.encode("hello worlds hello")

    assert not tokenizer.spelling.exact
    assert "".join(pieces(tokenizer, [], tokens, skip)) == tokenizer.decode(tokens, skip)
