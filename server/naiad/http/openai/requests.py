"""What the bodies of completions and chats have in common: how to sample, and what to answer.

Source: OpenAI's API and vLLM's fields beside it, which go on as `sampling_parameters`. A field that
would change the text and is not served is an error; others that nobody knows are passed over.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from naiad.http.openai.fields import Fields
from naiad_backends.errors import unsupported

logger = logging.getLogger(__name__)

Prompt = str | list[int] | Mapping[str, Any]
"""Text, tokens, or a chat as `naiad_backends.generation.CHAT` describes it."""

MOST_CHOICES = 128
MOST_STOPS = 16
_MOST_TOKENS = 2**31 - 1
_MOST_LIST = 65_536

_NUMBERS: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0, 2, False),
    "top_p": (0, 1, True),
    "min_p": (0, 1, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "repetition_penalty": (0, math.inf, True),
}
"""Least, most, and whether the least itself is none."""

_INTEGERS: Mapping[str, tuple[int, int]] = {
    "top_k": (-1, _MOST_TOKENS),
    "min_tokens": (0, _MOST_TOKENS),
    "seed": (-(2**63), 2**63 - 1),
    "truncate_prompt_tokens": (-1, _MOST_TOKENS),
}

_FLAGS = (
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "best_of": (1,),
    "thinking_token_budget": (-1,),
    "repetition_detection": (),
    "watermarking": (False,),
    "kv_transfer_params": ({},),
    "ec_transfer_params": ({},),
    "vllm_xargs": ({},),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
}
"""Fields that are not served, and the values with which they change nothing."""

_COMMON = (
    "model n stream stream_options stop stop_token_ids allowed_token_ids logprob_token_ids"
    " bad_words logit_bias logprobs prompt_logprobs max_tokens priority cache_salt return_token_ids"
    " return_tokens_as_token_ids add_special_tokens truncation_side"
    " request_id user metadata store service_tier safety_identifier prompt_cache_key"
    " prompt_cache_options prompt_cache_retention session_id stream_interval include_reasoning"
)
"""Fields that are read, or change nothing here."""

_told: set[str] = set()


@dataclass(slots=True)
class Generation:
    """A request for text, checked as far as that needs no model.

    model: the name that answers give; set once the model is known.
    prompts: at least one.  n: choices for each.
    sampling: vLLM's parameters, of those only that the client gave.
    logprobs: how many alternatives to each token; None for no logprobs at all.
    prompt_logprobs: the same for the tokens of the prompt, as vLLM shows them.
    echo: the text begins with the prompt.  generates: False if the prompt is all that is wanted.
    usage, usage_always: streams end with the counts of tokens, or have them in every chunk.
    token_ids: answers have tokens beside the text.  names_tokens: logprobs call tokens by number.
    priority: lower is sooner; 0 is usual.
    """

    prompts: Sequence[Prompt]
    model: str = ""
    n: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    generates: bool = True
    stream: bool = False
    usage: bool = False
    usage_always: bool = False
    token_ids: bool = False
    names_tokens: bool = False
    priority: int = 0


def read(
    fields: Fields, prompts: Sequence[Prompt], refused: Mapping[str, tuple[Any, ...]], known: str
) -> Generation:
    """The common part of a body.

    refused: like `_NEUTRAL`, of this kind of body.  known: its own fields, read elsewhere.
    Raises INVALID_ARG or UNSUPPORTED, naming the field.
    """
    refuse(fields, _NEUTRAL)
    refuse(fields, refused)
    wish = Generation(prompts, sampling=_sampling(fields))
    wish.n = fields.integer("n", 1, MOST_CHOICES) or 1
    wish.stream = fields.flag("stream")
    _read_stream_options(fields, wish)
    wish.prompt_logprobs = fields.integer("prompt_logprobs", 0, _MOST_TOKENS)
    if wish.prompt_logprobs is not None and wish.stream:
        raise fields.wrong("prompt_logprobs", "is not for streams")
    wish.token_ids = fields.flag("return_token_ids")
    if wish.token_ids and wish.sampling.get("truncate_prompt_tokens"):
        raise fields.wrong("truncate_prompt_tokens", "is not for requests with return_token_ids")
    wish.priority = fields.integer("priority", -(2**31), 2**31 - 1) or 0
    wish.names_tokens = fields.flag("return_tokens_as_token_ids")
    _tell(fields, known.split())
    return wish


def refuse(fields: Fields, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises UNSUPPORTED for the first of these fields that is there with another value."""
    for name in fields.document.keys() & neutral.keys():
        value = fields.get(name)
        if value is not None and value not in neutral[name]:
            raise unsupported("is not served yet", field=name, hint="leave it out")


def _read_stream_options(fields: Fields, wish: Generation) -> None:
    options = fields.object("stream_options")
    if options is None:
        return
    if not wish.stream:
        raise fields.wrong("stream_options", "is for streams only", "set stream to true")
    wish.usage = options.flag("include_usage")
    wish.usage_always = wish.usage and options.flag("continuous_usage_stats")


def _sampling(fields: Fields) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, (least, most, open) in _NUMBERS.items():
        told[name] = fields.number(name, least, most, open)
    for name, (lowest, highest) in _INTEGERS.items():
        told[name] = fields.integer(name, lowest, highest)
    for name in _FLAGS:
        if fields.get(name) is not None:
            told[name] = fields.flag(name)
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        told[name] = fields.tokens(name, _MOST_LIST) or None
    told["bad_words"] = fields.texts("bad_words", _MOST_LIST) or None
    told["stop"] = _stops(fields)
    told["logit_bias"] = _biases(fields)
    told["cache_salt"] = _salt(fields)
    told["truncation_side"] = _side(fields)
    return {name: value for name, value in told.items() if value is not None}


def _stops(fields: Fields) -> list[str] | None:
    if isinstance(fields.get("stop"), str):
        fields = Fields({"stop": [fields.get("stop")]})
    return fields.texts("stop", MOST_STOPS) or None


def _biases(fields: Fields) -> dict[str, float] | None:
    biases = fields.object("logit_bias")
    if biases is None or not biases.document:
        return None
    for token in biases.document:
        if not (token.isascii() and token.isdigit() and len(token) < 11):
            raise fields.wrong("logit_bias", f"'{token[:20]}' is not a token's number")
    given = {token: biases.number(token, -math.inf, math.inf) for token in biases.document}
    return {token: max(-100.0, min(100.0, bias or 0.0)) for token, bias in given.items()}


def _salt(fields: Fields) -> str | None:
    salt = fields.text("cache_salt")
    if salt is not None and (not 1 <= len(salt) <= 128 or set(salt) & set("@/\\\0")):
        raise fields.wrong("cache_salt", "must be 1 to 128 characters without @, /, \\ and NUL")
    return salt


def _side(fields: Fields) -> str | None:
    side = fields.text("truncation_side")
    if side is not None and side not in ("left", "right"):
        raise fields.wrong("truncation_side", f"must be left or right, not {side[:20]!r}")
    return side


def _tell(fields: Fields, own: Iterable[str]) -> None:
    """Log the fields that nobody knows, each once."""
    known = {*_COMMON.split(), *_NUMBERS, *_INTEGERS, *_NEUTRAL, *_FLAGS, *own}
    for name in fields.document.keys() - known - _told:
        if len(_told) < 1_000:
            _told.add(name)
            logger.info("requests have a field %r, which changes nothing here", name[:100])
