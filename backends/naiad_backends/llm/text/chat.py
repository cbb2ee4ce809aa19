"""Chats to prompts, by the template that a model brings.

Owns what a chat may hold and how it is handed to a template; the sandbox is `sandbox.py`'s. The
rules are those of Hugging Face's `apply_chat_template`, so that a model sees what it was trained
on. Knows nothing of tokens.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2

from naiad_backends.errors import NaiadError, invalid
from naiad_backends.llm.text.sandbox import Meter, compiled, render

_FIELDS = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "add_special_tokens",
}
_SHOWN = 60
"""Characters of what a client sent that an error shows."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names that the reasoning of a message goes by, the one that most templates read first."""

_END = "CONTINUE-HERE-8f3a "
"""Stands behind the message to continue while the template is rendered. Its space shows whether the
template trims messages."""


class ChatTemplate:
    """The templates of one model. Concurrency: any thread may call it."""

    def __init__(
        self,
        templates: Mapping[str, str],
        specials: Mapping[str, str],
        *,
        trust_requests: bool = False,
    ) -> None:
        """templates: by name; a model with one calls it `default`.
        specials: the texts of special tokens, `bos_token` and so on.
        trust_requests: a request may bring a template of its own, else only name one of these.
        """
        self._templates = templates
        self._specials = specials
        self._trust_requests = trust_requests
        for template in templates.values():
            compiled(template)

    def render(self, chat: Mapping[str, Any]) -> str:
        """The prompt for a chat: the JSON object of `generation.CHAT`. INVALID_ARG, naming the
        field, for one that is none, or that the template refuses."""
        unknown = chat.keys() - _FIELDS
        if unknown:
            raise invalid(
                "a chat has no such field",
                field=min(unknown)[:_SHOWN],
                hint="what the template knows beside them goes into chat_template_kwargs",
            )
        messages = _messages(chat.get("messages"))
        tools, documents = _objects(chat, "tools"), _objects(chat, "documents")
        goes_on = _flag(chat, "continue_final_message", False)
        prompts = _flag(chat, "add_generation_prompt", not goes_on)
        if goes_on and prompts:
            raise invalid(
                "continue_final_message and add_generation_prompt exclude each other",
                field="continue_final_message",
            )
        template = self._choose(chat.get("chat_template"), tools)
        shape = _shape(template, tuple(self._specials.items()))
        messages = [_shaped(message, at, shape) for at, message in enumerate(messages)]
        last = _mark_end(messages) if goes_on else ""
        variables = {
            **self._specials,
            **_arguments(chat.get("chat_template_kwargs")),
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": prompts,
        }
        text = render(template, variables, Meter())
        return _until_end(text, last) if goes_on else text

    def _choose(self, wanted: object, tools: object) -> jinja2.Template:
        if wanted is None:
            name = "tool_use" if tools and "tool_use" in self._templates else "default"
            if name in self._templates:
                return compiled(self._templates[name])
            raise invalid(
                "the model has no default chat template",
                field="chat_template",
                hint=f"name one of {', '.join(sorted(self._templates))}",
            )
        if not isinstance(wanted, str):
            raise invalid("is not a string", field="chat_template")
        if wanted in self._templates:
            return compiled(self._templates[wanted])
        if not self._trust_requests:
            raise invalid(
                "requests may not bring chat templates to this model",
                field="chat_template",
                hint="the parameter trust_request_chat_template allows it",
            )
        return compiled(wanted)


def _messages(given: object) -> list[dict[str, Any]]:
    """Messages of their own to change, without what is null."""
    if not isinstance(given, list) or not given:
        raise invalid("is not a list of at least one message", field="messages")
    messages = []
    for at, message in enumerate(given):
        if not isinstance(message, dict):
            raise invalid("is not an object", field=f"messages[{at}]")
        if not isinstance(message.get("role"), str):
            raise invalid("is not a string", field=f"messages[{at}].role")
        known = {key: value for key, value in message.items() if value is not None}
        reasoning = next((known[name] for name in _REASONING if name in known), None)
        if reasoning is not None:
            known = {"thinking": reasoning, **known, "reasoning_content": reasoning}
        if "tool_calls" in known:
            known["tool_calls"] = _tool_calls(known["tool_calls"], f"messages[{at}].tool_calls")
        messages.append(known)
    return messages


def _tool_calls(given: object, field: str) -> list[dict[str, Any]]:
    """Tool calls with arguments as templates want them: an object, not JSON in a string."""
    if not isinstance(given, list):
        raise invalid("is not a list", field=field)
    calls = []
    for at, call in enumerate(given):
        if not isinstance(call, dict):
            raise invalid("is not an object", field=f"{field}[{at}]")
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            arguments = _arguments_of_call(function["arguments"])
            call = {**call, "function": {**function, "arguments": arguments}}
        calls.append(call)
    return calls


def _arguments_of_call(text: str) -> object:
    """What a model has written may be no JSON; then it stays as it is."""
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return text


def _objects(chat: Mapping[str, Any], field: str) -> list[Any] | None:
    given = chat.get(field)
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise invalid("is not a list of objects", field=field)
    return given


def _flag(chat: Mapping[str, Any], field: str, default: bool) -> bool:
    value = chat.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid("is not a boolean", field=field)
    return value


def _arguments(given: object) -> Mapping[str, Any]:
    """What a request tells the template beside the chat."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid("is not an object", field="chat_template_kwargs")
    taken = sorted(given.keys() & _FIELDS)
    if taken:
        raise invalid("is a field of the chat itself", field=f"chat_template_kwargs.{taken[0]}")
    return given


@lru_cache(maxsize=64)
def _shape(template: jinja2.Template, specials: tuple[tuple[str, str], ...]) -> str:
    """How a template reads content: as a `text`, as a list of `parts`, or as `either`.

    Found by trying; of a template that refuses both nothing is known, and most read texts.
    """
    mark = "naiad-probe-51c7"
    text = _tried(template, specials, mark)
    parts = _tried(template, specials, [{"type": "text", "text": mark}])
    reads_text, reads_parts = mark in text, mark in parts and "{'type'" not in parts
    if reads_parts:
        return "either" if reads_text else "parts"
    return "text"


def _tried(
    template: jinja2.Template, specials: tuple[tuple[str, str], ...], content: object
) -> str:
    variables = {
        **dict(specials),
        "messages": [{"role": "user", "content": content}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": False,
    }
    try:
        return render(template, variables, Meter(seconds=0.2))
    except NaiadError:
        return ""


def _shaped(message: dict[str, Any], at: int, shape: str) -> dict[str, Any]:
    """A message with its content in a shape that the template reads."""
    content = message.get("content")
    field = f"messages[{at}].content"
    if content is None:
        return message
    if isinstance(content, str):
        if shape == "parts":
            return {**message, "content": [{"type": "text", "text": content}]}
        return message
    if not isinstance(content, list):
        raise invalid("is neither a string nor a list of parts", field=field)
    texts = [_text(part, f"{field}[{number}]") for number, part in enumerate(content)]
    if shape == "text":
        return {**message, "content": "\n".join(texts)}
    return {**message, "content": [{"type": "text", "text": text} for text in texts]}


def _text(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise invalid("is not an object", field=field)
    if part.get("type") != "text":
        raise invalid(
            f"parts of the type {part.get('type')!r:.{_SHOWN}} are not supported",
            field=f"{field}.type",
            hint="this model takes text",
        )
    if not isinstance(part.get("text"), str):
        raise invalid("is not a string", field=f"{field}.text")
    return str(part["text"])


def _mark_end(messages: Sequence[dict[str, Any]]) -> str:
    """Mark where the last message ends, and say what it says."""
    message = messages[-1]
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END
        return content
    if isinstance(content, list) and content:
        text = str(content[-1]["text"])
        content[-1] = {**content[-1], "text": text + _END}
        return text
    raise invalid("continue_final_message needs a last message with content", field="messages")


def _until_end(text: str, last: str) -> str:
    """The prompt up to the end of the last message."""
    head, mark, after = text.rpartition(_END.strip())
    if not mark or last.strip() not in head:
        raise invalid(
            "the chat template does not render the last message as it is, so it cannot go on",
            field="continue_final_message",
        )
    return head if after.startswith(" ") else head.rstrip()
