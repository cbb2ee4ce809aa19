"""The prompt of a request: text, a chat or tokens, and the tokens that it becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from naiad_backends import generation
from naiad_backends.api import Request
from naiad_backends.errors import NaiadError, invalid
from naiad_backends.generation import TextTools
from naiad_backends.llm.answers import text_of
from naiad_backends.llm.text.cutting import Cut
from naiad_backends.llm.text.tools import ModelText

_INPUTS = (generation.TEXT_INPUT, generation.INPUT_IDS, generation.CHAT)

_LONG = 2_048
"""Characters whose tokens are made beside the event loop: a millisecond or so."""


@dataclass(slots=True)
class Prompt:
    """One of the three. special: the tokenizer adds its special tokens to `text`."""

    text: str = ""
    chat: Mapping[str, Any] | None = None
    tokens: Sequence[int] | None = None
    special: bool = True

    @property
    def long(self) -> bool:
        """Whether `encode` may take milliseconds. A template may do anything."""
        return self.chat is not None or len(self.text) > _LONG

    def encode(self, tools: ModelText, longest: int, cut: Cut | None) -> Sequence[int]:
        """Its tokens, at least one. Raises INVALID_ARG. On any thread.

        longest: of prompt and answer; a text that is far longer is refused before it is tokens,
        unless it is to be cut.
        """
        if self.chat is not None:
            self.text = tools.render(self.chat)
        if self.tokens is not None:
            self.tokens = self.tokens if cut is None else cut.of(self.tokens)
        elif cut is not None:
            self.tokens = tools.tokenizer.encode_cut(self.text, cut, self.special)
        elif tools.exceeds(self.text, longest):
            raise too_long(f"more than {longest}", longest)
        else:
            self.tokens = tools.encode(self.text, self.special)
        if not len(self.tokens):
            raise invalid("the prompt is empty", field=self._field)
        return self.tokens

    def written(self, tools: TextTools) -> str:
        """Its text, once it is encoded."""
        if self.text or self.tokens is None:
            return self.text
        return tools.decode(self.tokens)

    @property
    def _field(self) -> str:
        if self.chat is not None:
            return generation.CHAT
        return generation.TEXT_INPUT if self.text else generation.INPUT_IDS


def too_long(count: int | str, longest: int) -> NaiadError:
    """The error for a prompt of so many tokens."""
    return invalid(
        f"the prompt has {count} tokens, and the model takes {longest} tokens of prompt and answer"
        " together",
        field="prompt",
        hint="shorten it, or set truncate_prompt_tokens",
    )


def read(request: Request, vocab_size: int, special: bool) -> Prompt:
    """The prompt of a request. Raises INVALID_ARG, naming the input.

    special: whether a text gets the tokenizer's special tokens.
    """
    given = [name for name in _INPUTS if name in request.inputs]
    if len(given) != 1:
        raise invalid(
            f"the prompt is given {len(given)} times" if given else "there is no prompt",
            field=given[1] if given else generation.TEXT_INPUT,
            hint=f"give exactly one of {', '.join(_INPUTS)}",
        )
    if generation.INPUT_IDS in request.inputs:
        return Prompt(tokens=_tokens(request, vocab_size))
    if generation.CHAT in request.inputs:
        chat = _chat(text_of(request, generation.CHAT) or "")
        # A template writes them itself.
        return Prompt(chat=chat, special=chat.get("add_special_tokens") is True)
    return Prompt(text_of(request, generation.TEXT_INPUT) or "", special=special)


def _tokens(request: Request, vocab_size: int) -> list[int]:
    array = request.inputs[generation.INPUT_IDS].numpy()
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        wrong = array[(array < 0) | (array >= vocab_size)][0]
        raise invalid(
            f"the vocabulary has no token {wrong}",
            field=generation.INPUT_IDS,
            hint=f"it has {vocab_size} tokens",
        )
    tokens: list[int] = array.tolist()
    return tokens


def _chat(text: str) -> Mapping[str, Any]:
    try:
        chat = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid(f"it is no JSON: {error}", field=generation.CHAT) from error
    if not isinstance(chat, dict):
        raise invalid("it is no JSON object", field=generation.CHAT)
    return chat
