"""What front ends may ask about text."""

import pytest

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text.chat import ChatTemplate
from naiad_backends.llm.text.cutting import MOST
from naiad_backends.llm.text.tokenizer import Tokenizer
from naiad_backends.llm.text.tools import ModelText

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def text(smollm2: Tokenizer) -> ModelText:
    """A model that chats."""
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, smollm2.specials)
    return ModelText(smollm2, template, max_model_len=8192)


def test_a_chat_model_does_it_all(text: ModelText) -> None:
    tokens = text.encode("<|im_start|>Grüße")

    assert (text.max_model_len, text.generates, text.chats) == (8192, True, True)
    assert text.decode(tokens) == "<|im_start|>Grüße"
    assert text.decode(tokens, skip_special_tokens=True) == "Grüße"
    assert text.token_strings(tokens[:3]) == ["<|im_start|>", "Gr", "Ã¼"]
    assert text.render(CHAT) == "hi"


def test_a_model_without_a_template_does_not_chat(smollm2: Tokenizer) -> None:
    plain = ModelText(smollm2, None, max_model_len=16)

    assert not plain.chats
    with pytest.raises(NaiadError) as caught:
        plain.render(CHAT)
    assert caught.value.code == Code.UNSUPPORTED


def test_a_model_that_embeds_does_not_chat(smollm2: Tokenizer) -> None:
    template = ChatTemplate({"default": "x"}, {})

    assert not ModelText(smollm2, template, max_model_len=16, generates=False).chats


def test_only_of_long_texts_is_said_that_they_are_too_long(text: ModelText) -> None:
    assert not text.exceeds("sea " * 10_000, 10)
    assert text.exceeds("sea " * 100_000, 10)
    assert not text.exceeds("sea " * 100_000, 100_000)


@pytest.mark.parametrize("tokens", [[-1], [1, 49152], [1 << 70]])
def test_tokens_that_there_are_not_are_refused(text: ModelText, tokens: list[int]) -> None:
    for call in (text.decode, text.token_strings):
        with pytest.raises(NaiadError, match="is not in the vocabulary") as caught:
            call(tokens)
        assert caught.value.code == Code.INVALID_ARG


def test_a_text_that_would_take_too_long_is_refused(text: ModelText) -> None:
    """Also where it is few tokens: a word that nobody knows is one."""
    with pytest.raises(NaiadError, match="4194305 characters") as caught:
        text.encode("x" * (MOST + 1))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "text_input")
