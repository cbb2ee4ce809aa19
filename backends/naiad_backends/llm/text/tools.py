"""What front ends may ask a model about text: `generation.TextTools`, for models of this backend.

Only puts the tokenizer and the chat template together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from naiad_backends.errors import invalid, unsupported
from naiad_backends.generation import TEXT_INPUT, TextTools
from naiad_backends.llm.text.chat import ChatTemplate
from naiad_backends.llm.text.cutting import CHARACTERS, MOST
from naiad_backends.llm.text.tokenizer import Tokenizer

_SHORT = 65_536
"""Characters of a text whose tokens are always made, so that an error can count them."""


class ModelText(TextTools):
    """The text of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        max_model_len: int,
        generates: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._max_model_len = max_model_len
        self._most = max(MOST, max_model_len * CHARACTERS)
        self._generates = generates

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def generates(self) -> bool:
        return self._generates

    @property
    def chats(self) -> bool:
        return self._generates and self.template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.check_length(text)
        return self.tokenizer.encode(text, add_special_tokens)

    def check_length(self, text: str) -> None:
        """INVALID_ARG for a text that would take too long to become tokens, however few."""
        if len(text) > self._most:
            raise invalid(
                f"a text of {len(text)} characters is too long",
                field=TEXT_INPUT,
                hint=f"send at most {self._most} characters",
            )

    def exceeds(self, text: str, tokens: int) -> bool:
        return len(text) > _SHORT and self.tokenizer.exceeds(text, tokens)

    def render(self, chat: Mapping[str, Any]) -> str:
        if self.template is None:
            raise unsupported(
                "the model has no chat template",
                field="messages",
                hint="send a prompt, or give the model one by the parameter chat_template",
            )
        return self.template.render(chat)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def token_strings(self, tokens: Sequence[int]) -> list[str]:
        self.tokenizer.check(tokens)
        return [self.tokenizer.token(token) for token in tokens]
