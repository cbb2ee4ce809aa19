"""POST /tokenize and /detokenize, as vLLM has them: what a model's tokenizer makes of a text."""

from typing import Any

from naiad.http.openai import chat
from naiad.http.openai.fields import Fields
from naiad_backends.generation import TextTools

_MOST = 2**20
"""Tokens of a call."""


def tokenize(tools: TextTools, fields: Fields) -> dict[str, Any]:
    """The tokens of `prompt` or of `messages`. May take milliseconds."""
    messages = fields.get("messages") is not None
    if messages == (fields.get("prompt") is not None):
        raise fields.wrong("prompt", "must be there, or messages must, but not both")
    text = tools.render(chat.read_chat(fields)) if messages else fields.text("prompt") or ""
    tokens = list(tools.encode(text, fields.flag("add_special_tokens", not messages)))
    told: dict[str, Any] = {"count": len(tokens), "max_model_len": tools.max_model_len}
    told["tokens"] = tokens
    if fields.flag("return_token_strs"):
        told["token_strs"] = list(tools.token_strings(tokens))
    return told


def detokenize(tools: TextTools, fields: Fields) -> dict[str, Any]:
    """The text of `tokens`. May take milliseconds."""
    if fields.get("tokens") is None:
        raise fields.wrong("tokens", "is missing")
    return {"prompt": tools.decode(fields.tokens("tokens", _MOST))}
