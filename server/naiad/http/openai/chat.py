"""POST /v1/chat/completions: its body, its answer and its chunks."""

from collections.abc import Mapping
from typing import Any

from naiad.http.openai import logprobs, requests
from naiad.http.openai.choices import Choice, Piece
from naiad.http.openai.fields import Fields
from naiad.http.openai.form import Form
from naiad.http.openai.requests import Generation
from naiad_backends.errors import unsupported

_MOST_MESSAGES = 16_384
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "functions": (),
    "function_call": ("none",),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "echo": (False,),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}
_KNOWN = (
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls documents"
    " reasoning_effort verbosity add_generation_prompt continue_final_message chat_template"
    " chat_template_kwargs"
)


def read(fields: Fields) -> Generation:
    """The body. Raises INVALID_ARG or UNSUPPORTED, naming the field."""
    wish = requests.read(fields, [read_chat(fields)], _REFUSED, _KNOWN)
    _refuse_tools(fields)
    best = fields.integer("top_logprobs", 0, 2**31 - 1)
    if fields.flag("logprobs"):
        wish.logprobs = best or 0
    elif best is not None:
        raise fields.wrong("top_logprobs", "needs logprobs", "set logprobs to true")
    most = fields.integer("max_completion_tokens", 1, 2**31 - 1)
    # Without a limit a chat may use all the room that the model has.
    wish.sampling["max_tokens"] = most or fields.integer("max_tokens", 1, 2**31 - 1)
    return wish


def read_chat(fields: Fields) -> dict[str, Any]:
    """What a chat template is told. Raises INVALID_ARG or UNSUPPORTED, naming the field."""
    chat: dict[str, Any] = {"messages": _messages(fields)}
    adds = fields.flag("add_generation_prompt", True)
    if fields.flag("continue_final_message"):
        if adds and fields.get("add_generation_prompt") is not None:
            raise fields.wrong(
                "continue_final_message", "cannot be true together with add_generation_prompt"
            )
        chat["continue_final_message"], adds = True, False
    chat["add_generation_prompt"] = adds
    if fields.flag("add_special_tokens"):
        chat["add_special_tokens"] = True
    if (template := fields.text("chat_template")) is not None:
        chat["chat_template"] = template
    if (documents := fields.get("documents")) is not None:
        if not isinstance(documents, list):
            raise fields.wrong("documents", "must be a list")
        chat["documents"] = documents
    told = fields.object("chat_template_kwargs")
    effort = fields.text("reasoning_effort")
    if effort is not None:
        thinks = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        chat["chat_template_kwargs"] = thinks
    if told is not None:
        chat["chat_template_kwargs"] = {**chat.get("chat_template_kwargs", {}), **told.document}
    return chat


def _messages(fields: Fields) -> list[Any]:
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", "must be a list of at least one message")
    if len(given) > _MOST_MESSAGES:
        raise fields.wrong("messages", f"has {len(given)} entries, but may have {_MOST_MESSAGES}")
    for number, document in enumerate(given):
        message = Fields(document, f"messages[{number}]")
        role = message.text("role")
        if role not in _ROLES:
            raise message.wrong("role", f"must be one of {', '.join(_ROLES)}")
        _check_content(message, role)
    return given


def _check_content(message: Fields, role: str) -> None:
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise message.wrong("content", "is missing")
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise message.wrong("content", "must be a text or a list of parts")
    for number in range(len(content)):
        part = Fields(content[number], message.path(f"content[{number}]"))
        kind = part.text("type")
        if kind != "text":
            raise unsupported(
                f"parts of type '{(kind or '')[:40]}' are not served",
                field=part.path("type"),
                hint="the model reads text",
            )
        if part.text("text") is None:
            raise part.wrong("text", "is missing")


def _refuse_tools(fields: Fields) -> None:
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if tools == []:
        raise fields.wrong("tools", "must not be empty", "leave it out")
    if tools is None and choice not in (None, "none", "auto"):
        raise fields.wrong("tool_choice", "needs tools")
    if tools is not None and choice != "none":
        raise unsupported("are not served yet", field="tools", hint="set tool_choice to none")


class Chat(Form):
    """What answers to chats look like."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    text_head = b',"delta":{"content":'
    text_tail = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def choice(self, choice: Choice) -> dict[str, Any]:
        piece = choice.whole
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._told(choice, piece, {"index": choice.index, "message": message})

    def beside(self) -> dict[str, Any]:
        prompt, told = self.choices.prompts[0], {}
        if self.wish.token_ids:
            told["prompt_token_ids"] = prompt.prepared.tokens
        if self.wish.prompt_logprobs is not None:
            told["prompt_logprobs"] = logprobs.of_prompt(prompt.logprobs)
        return told

    def opening(self, choice: Choice) -> bytes:
        delta = {"role": "assistant", "content": ""}
        told = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self.event([told])

    def chunk(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or choice.finish is None else {}
        return self._told(choice, piece, {"index": choice.index, "delta": delta})

    def _told(self, choice: Choice, piece: Piece, told: dict[str, Any]) -> dict[str, Any]:
        told["logprobs"] = None
        # A chunk that only ends its choice has no token to tell of.
        if self.wish.logprobs is not None and (piece.logprobs or not self.wish.stream):
            told["logprobs"] = logprobs.of_chat(
                piece.logprobs, self.wish.logprobs, self.wish.names_tokens
            )
        told["finish_reason"] = choice.finish
        if choice.finish is not None:
            told["stop_reason"] = choice.stop_reason
        if self.wish.token_ids:
            told["token_ids"] = piece.tokens
        return told
