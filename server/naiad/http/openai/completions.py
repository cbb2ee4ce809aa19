"""POST /v1/completions: its body, its answer and its chunks."""

from collections.abc import Sequence
from typing import Any

from naiad.http.openai import logprobs, requests
from naiad.http.openai.choices import Choice, Piece
from naiad.http.openai.fields import Fields, are_tokens
from naiad.http.openai.form import Form
from naiad.http.openai.requests import Generation, Prompt

_MOST_PROMPTS = 1_024
_DEFAULT_TOKENS = 16

_REFUSED = {"suffix": ("",), "prompt_embeds": ()}
_KNOWN = "prompt echo"


def read(fields: Fields) -> Generation:
    """The body. Raises INVALID_ARG or UNSUPPORTED, naming the field."""
    wish = requests.read(fields, _prompts(fields), _REFUSED, _KNOWN)
    wish.echo = fields.flag("echo")
    if not fields.flag("add_special_tokens", True):
        wish.sampling["add_special_tokens"] = False
    if wish.echo and wish.sampling.get("truncate_prompt_tokens"):
        raise fields.wrong("truncate_prompt_tokens", "is not for requests with echo")
    wish.logprobs = fields.integer("logprobs", 0, 2**31 - 1)
    most = fields.integer("max_tokens", 0, 2**31 - 1)
    if most == 0 and not wish.echo:
        raise fields.wrong("max_tokens", "must be at least 1", "0 is for echo")
    wish.generates = most != 0
    # A model gives at least one token; the form leaves it out again.
    wish.sampling["max_tokens"] = _DEFAULT_TOKENS if most is None else max(1, most)
    return wish


def _prompts(fields: Fields) -> Sequence[Prompt]:
    given = fields.get("prompt")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise fields.wrong("prompt", "must be a text, tokens, or a list of one of the two")
    if are_tokens(given):
        return [given]
    if len(given) > _MOST_PROMPTS:
        raise fields.wrong("prompt", f"has {len(given)} entries, but may have {_MOST_PROMPTS}")
    for number, prompt in enumerate(given):
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and are_tokens(prompt)):
            raise fields.wrong(f"prompt[{number}]", "must be a text or a list of tokens")
        if type(prompt) is not type(given[0]):
            raise fields.wrong(f"prompt[{number}]", "is of another kind than the first one")
        if prompt == []:
            raise fields.wrong(f"prompt[{number}]", "must not be empty")
    return given


class Completions(Form):
    """What answers to completions look like."""

    prefix = "cmpl"
    kind = chunk_kind = "text_completion"
    text_head = b',"text":'
    text_tail = b',"logprobs":null,"finish_reason":null}]}\n\n'

    def choice(self, choice: Choice) -> dict[str, Any]:
        told = self.chunk(choice, choice.whole)
        if self.wish.token_ids:
            told["prompt_token_ids"] = choice.prompt.prepared.tokens
        if self.wish.prompt_logprobs is not None:
            told["prompt_logprobs"] = logprobs.of_prompt(choice.prompt.logprobs)
        return told

    def chunk(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        told: dict[str, Any] = {"index": choice.index, "text": piece.text, "logprobs": None}
        if self.wish.logprobs is not None:
            told["logprobs"] = logprobs.of_completion(
                piece.logprobs, self.wish.logprobs, choice.offsets, self.wish.names_tokens
            )
        told["finish_reason"] = choice.finish
        told["stop_reason"] = choice.stop_reason
        if self.wish.token_ids:
            told["token_ids"] = piece.tokens
        return told
