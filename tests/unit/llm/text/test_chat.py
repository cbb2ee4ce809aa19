"""Chats to prompts: as transformers renders them, and errors that name what is wrong."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.llm.text.templates import CHATML, GEMMA, LLAMA3, PARTS, STYLES, THINKING

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text.chat import ChatTemplate
from naiad_backends.llm.text.tokenizer import Tokenizer

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"const": "<é & 'x'>"}}}},
}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Rom"}},
}


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """What a request brings."""
    return {"messages": list(messages), **fields}


HELLO = say("user", "Hello ")
CHATS = {
    "one": chat(HELLO),
    "system": chat(say("system", " Be brief. "), HELLO),
    "turns": chat(HELLO, say("assistant", " Hi!"), say("user", "Bye\n")),
    "answered": chat(HELLO, say("assistant", "Hi!"), add_generation_prompt=False),
    "continued": chat(HELLO, say("assistant", "I am "), continue_final_message=True),
    "tools": chat(HELLO, tools=[TOOL]),
    "calls": chat(
        HELLO,
        say("assistant", None, tool_calls=[CALL]),
        say("tool", "rain", tool_call_id="1"),
        tools=[TOOL],
    ),
    "reasoning": chat(HELLO, say("assistant", "4", reasoning="2+2"), add_generation_prompt=False),
    "documents": chat(HELLO, documents=[{"title": "T", "text": "x"}]),
    "arguments": chat(HELLO, chat_template_kwargs={"enable_thinking": False}),
    "alternating": chat(HELLO, HELLO),
}


def reference(source: str, given_chat: Mapping[str, Any]) -> str | None:
    """What transformers makes of it; None if the template refuses the chat."""
    from transformers.utils.chat_template_utils import (
        _normalize_chat_messages,
        render_jinja_template,
    )

    fields = {**SPECIALS, **given_chat}
    messages = _normalize_chat_messages(fields.pop("messages"))
    fields |= fields.pop("chat_template_kwargs", {})
    fields.setdefault("add_generation_prompt", not fields.get("continue_final_message"))
    try:
        texts: list[str] = render_jinja_template([messages], chat_template=source, **fields)[0]
    except Exception:
        return None
    return texts[0]


def rendered(source: str, given_chat: Mapping[str, Any]) -> str | None:
    """What we make of it; None for a chat that is refused."""
    try:
        return ChatTemplate({"default": source}, SPECIALS).render(given_chat)
    except NaiadError as error:
        assert error.code == Code.INVALID_ARG
        return None


@pytest.mark.parametrize("style", sorted(STYLES.keys() - {"parts"}))
@pytest.mark.parametrize("name", CHATS)
def test_prompts_are_those_of_transformers(style: str, name: str) -> None:
    assert rendered(STYLES[style], CHATS[name]) == reference(STYLES[style], CHATS[name])


def test_what_the_styles_render_is_not_nothing() -> None:
    assert rendered(LLAMA3, CHATS["calls"]) is not None
    assert rendered(GEMMA, CHATS["system"]) is None
    assert rendered(THINKING, CHATS["arguments"]) == "<|user|>Hello <|assistant|><think></think>"


TEXT = st.text(max_size=12)


@given(
    messages=st.lists(
        st.builds(say, st.sampled_from(["system", "user", "assistant", "tool"]), TEXT),
        min_size=1,
        max_size=5,
    ),
    style=st.sampled_from(["chatml", "llama3", "gemma", "mistral", "thinking"]),
    prompt=st.booleans(),
)
def test_any_chat_is_rendered_as_transformers_does(
    messages: list[dict[str, Any]], style: str, prompt: bool
) -> None:
    given_chat = chat(*messages, add_generation_prompt=prompt)

    assert rendered(STYLES[style], given_chat) == reference(STYLES[style], given_chat)


def test_smollm2_chats(smollm2: Tokenizer, smollm2_file: Any) -> None:
    from naiad_backends.llm.checkpoint.gguf import read_gguf
    from naiad_backends.llm.text import open_template

    template = open_template(smollm2, smollm2_file.parent, read_gguf(smollm2_file).metadata)
    assert template is not None

    prompt = template.render(chat(say("user", "Hi")))

    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.encode(prompt, add_special_tokens=False).count(1) == 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, "user\na\nb<|im_end|>"),
        (GEMMA, "user\na\nb<end_of_turn>"),
        (PARTS, "User: ab\n"),
        (THINKING, "<|user|>ab"),
    ],
)
def test_parts_of_text_become_what_the_template_reads(source: str, expected: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert expected in (rendered(source, chat(say("user", parts))) or "")


def test_a_template_that_reads_parts_gets_them_for_a_text_too() -> None:
    last = say("assistant", "Sure, ")

    assert rendered(PARTS, chat(HELLO)) == "User: Hello \nAssistant:"
    assert rendered(PARTS, chat(HELLO, last, continue_final_message=True)) == (
        "User: Hello \nAssistant: Sure, "
    )


def test_arguments_of_calls_may_be_json_or_what_a_model_took_for_it() -> None:
    def arguments(given_arguments: Any) -> str | None:
        call = {"function": {"name": "f", "arguments": given_arguments}}
        source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
        return rendered(source, chat(say("assistant", None, tool_calls=[call])))

    assert arguments('{"a": [1, "é"]}') == '{"a": [1, "é"]}'
    assert arguments({"a": 1}) == '{"a": 1}'
    assert arguments("") == "{}"
    assert arguments('{"a": ') == '"{\\"a\\": "'


def test_a_request_may_choose_among_templates_and_bring_one_only_if_trusted() -> None:
    templates = {"default": "one", "rag": "two"}
    careful = ChatTemplate(templates, SPECIALS)
    trusting = ChatTemplate(templates, SPECIALS, trust_requests=True)

    assert careful.render(chat(HELLO, chat_template="rag")) == "two"
    with pytest.raises(NaiadError, match="may not bring chat templates"):
        careful.render(chat(HELLO, chat_template="{{ bos_token }}"))
    assert trusting.render(chat(HELLO, chat_template="{{ bos_token }}")) == "<s>"


@pytest.mark.parametrize(
    ("given_chat", "field", "said"),
    [
        ({}, "messages", "not a list of at least one message"),
        (chat(), "messages", "not a list of at least one message"),
        ({"messages": "Hi"}, "messages", "not a list"),
        (chat("Hi"), "messages[0]", "not an object"),  # type: ignore[arg-type]  # On purpose.
        (chat(HELLO, {"content": "x"}), "messages[1].role", "not a string"),
        (chat(say("user", 5)), "messages[0].content", "neither a string nor a list"),
        (chat(say("user", ["x"])), "messages[0].content[0]", "not an object"),
        (chat(say("user", [{"type": "image_url"}])), "messages[0].content[0].type", "'image_url'"),
        (chat(say("user", [{"type": "text"}])), "messages[0].content[0].text", "not a string"),
        (chat(say("assistant", "", tool_calls={})), "messages[0].tool_calls", "not a list"),
        (chat(say("assistant", "", tool_calls=[1])), "messages[0].tool_calls[0]", "not an object"),
        (chat(HELLO, tools={}), "tools", "not a list of objects"),
        (chat(HELLO, documents=["x"]), "documents", "not a list of objects"),
        (chat(HELLO, add_generation_prompt=1), "add_generation_prompt", "not a boolean"),
        (chat(HELLO, chat_template_kwargs=[]), "chat_template_kwargs", "not an object"),
        (
            chat(HELLO, chat_template_kwargs={"messages": []}),
            "chat_template_kwargs.messages",
            "a field of the chat itself",
        ),
        (chat(HELLO, chat_template=5), "chat_template", "not a string"),
        (chat(HELLO, temperature=1), "temperature", "no such field"),
        (
            chat(HELLO, add_generation_prompt=True, continue_final_message=True),
            "continue_final_message",
            "exclude each other",
        ),
        (
            chat(say("assistant", None), continue_final_message=True),
            "messages",
            "a last message with content",
        ),
    ],
)
def test_mistakes_name_their_field(given_chat: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(NaiadError) as caught:
        ChatTemplate({"default": CHATML}, SPECIALS).render(given_chat)

    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, field)
    assert said in caught.value.message


def test_a_template_may_refuse_a_chat_with_words_of_its_own() -> None:
    with pytest.raises(NaiadError, match="the chat template says: System role not supported"):
        ChatTemplate({"default": GEMMA}, SPECIALS).render(CHATS["system"])


def test_a_message_that_is_not_rendered_cannot_go_on() -> None:
    hides = ChatTemplate({"default": "{{ messages[0].content }}"}, SPECIALS)

    with pytest.raises(NaiadError, match="does not render the last message"):
        hides.render(chat(HELLO, say("assistant", "x"), continue_final_message=True))


def test_a_model_without_a_default_template_asks_for_a_name() -> None:
    named = ChatTemplate({"rag": "x", "tool_use": "tools"}, SPECIALS)

    assert named.render(chat(HELLO, tools=[TOOL])) == "tools"
    with pytest.raises(NaiadError, match="name one of rag, tool_use"):
        named.render(chat(HELLO))
