"""What a model that writes or embeds text looks like, whatever its backend.

Source of most names: the signature of Triton's vLLM backend. Front ends such as the one of
OpenAI's API find models by it and speak to them with it; the LLM backend has all of it, a generator
in Python may have the least: an input `text_input` and an output `text_output`.

A generator is decoupled. With `stream` each response has the next text of one choice (output
`index` says which), else a single response has all choices. Tensors are as in any request: BYTES
for text (UTF-8), shape [1] for what belongs to the request, [n] for what belongs to a choice.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

# Inputs. Exactly one of the first three is the prompt.
TEXT_INPUT = "text_input"
"""BYTES [1]: the prompt as text."""
INPUT_IDS = "input_ids"
"""INT64 [-1]: the prompt as tokens."""
CHAT = "chat"
"""BYTES [1]: a JSON object with `messages` as OpenAI's API has them, and with what a chat template
may be told beside them: `tools`, `documents`, `add_generation_prompt`, `continue_final_message`,
`chat_template`, `chat_template_kwargs`, `add_special_tokens`."""
SAMPLING_PARAMETERS = "sampling_parameters"
"""BYTES [1]: a JSON object with vLLM's names for how to sample and when to stop."""
STREAM = "stream"
"""BOOL [1]: responses as the text grows; the default is one at the end."""
EXCLUDE_INPUT = "exclude_input_in_output"
"""BOOL [1]: without it, the prompt precedes the text of a request that does not stream."""
RETURN_FLAGS: Mapping[str, str] = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""BOOL [1] each: give the output beside it, for requests that name no outputs."""

# Outputs. Only `text_output` comes unasked.
TEXT_OUTPUT = "text_output"
"""BYTES [n]: with `stream` only what is new."""
INDEX = "index"
"""INT32 [n]: the number of the choice, from 0."""
FINISH_REASON = "finish_reason"
"""BYTES [n]: `stop`, `length`, `abort`, or empty while the choice goes on."""
STOP_REASON = "stop_reason"
"""BYTES [n]: JSON: the stop string or the stop token that ended the choice, or null."""
OUTPUT_IDS = "output_ids"
"""BYTES [n]: JSON: the tokens; with `stream` only the new ones."""
LOGPROBS = "logprobs"
"""BYTES [n]: JSON: for each new token an object with `id`, `token`, `bytes`, `logprob`, `rank` and
`top`, a list of such objects without `top`, best first; null if none were asked for."""
PROMPT_LOGPROBS = "prompt_logprobs"
"""BYTES [1]: JSON: the same for each token of the prompt, null for the first. With `stream` in the
first response only."""
CUMULATIVE_LOGPROB = "cumulative_logprob"
"""FP32 [n]: the sum of the logprobs of all tokens so far."""
NUM_INPUT_TOKENS = "num_input_tokens"
"""UINT32 [1]: of the prompt."""
NUM_CACHED_TOKENS = "num_cached_tokens"
"""UINT32 [1]: those of the prompt that the prefix cache had."""
NUM_OUTPUT_TOKENS = "num_output_tokens"
"""UINT32 [n]: of each choice so far."""

EMBEDDING = "embedding"
"""FP32 [-1]: what an embedding model, which is not decoupled and has `text_input` or `text` or
`input_ids`, gives for a text."""


class TextTools(ABC):
    """Tokens and text of one model: `Model.text`, for a backend that has them.

    Concurrency: any thread may call it; calls may take milliseconds for long texts. A mistake in
    what is given raises INVALID_ARG, naming the field.
    """

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """How many tokens prompt and answer may have together."""

    @property
    @abstractmethod
    def generates(self) -> bool:
        """Whether the model writes text; else it embeds."""

    @property
    @abstractmethod
    def chats(self) -> bool:
        """Whether the model has a chat template."""

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]:
        """The tokens of a text."""

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a text has more than so many tokens. May be False for one that has: this is to
        refuse at once what is far too long, and makes no tokens."""
        return False

    @abstractmethod
    def render(self, chat: Mapping[str, Any]) -> str:
        """The prompt that the template makes of a chat; `chat` is what the input CHAT holds."""

    @abstractmethod
    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens. INVALID_ARG for one that the vocabulary does not have."""

    @abstractmethod
    def token_strings(self, tokens: Sequence[int]) -> Sequence[str]:
        """Each token as the vocabulary spells it."""
