"""How a request wants its text: vLLM's parameters, from JSON, checked one by one.

Unknown names are told to the log once and ignored; those that would change what the answer means
are refused. Ranges are vLLM's. Knows nothing of tensors.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from naiad_backends.errors import invalid, unsupported
from naiad_backends.llm.sampling import Sampling
from naiad_backends.llm.text.cutting import Cut
from naiad_backends.llm.values import LONGEST, Values, as_number, as_token, as_whole, wrong

logger = logging.getLogger(__name__)

MOST_CHOICES = 16_384
MOST_STOPS = 16
MOST_STOP_TEXT = 16_384
"""Characters of all stop strings."""
MOST_LOGPROB_IDS = 128
MOST_BAD_WORDS = 4_096
"""Tokens of all bad words."""
MOST_BAD_TEXT = 65_536
"""Characters of them."""

DEFAULT_MAX_TOKENS = 16
"""Of a prompt that is no chat."""

_SIDES = ("left", "right")
_GREEDY = 1e-5
_COLDEST = 0.01
_STRONGEST_BIAS = 100.0
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "logits_processors": ((), []),
    "structured_outputs": ({},),
    "guided_decoding": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "response_format": ({"type": "text"},),
    "lora_name": ("",),
    "typical_p": (1, 1.0),
    "repetition_detection": (),
}
"""What would change the answer and is not there, and the values that ask for nothing; none also
does."""

_SILENT = (
    "detokenize",
    "spaces_between_special_tokens",
    "output_kind",
    "extra_args",
    "flat_logprobs",
)
"""vLLM's own, at which nobody needs to be surprised."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model allows. defaults: its author's, by vLLM's names.  eos: the tokens that end a
    text.  max_logprobs: -1 for all of the vocabulary.  seed: 0 for a random one each time.
    encode: the tokens of a text, without special ones."""

    vocab_size: int
    eos: frozenset[int] = frozenset()
    max_logprobs: int = 20
    seed: int = 0
    defaults: Mapping[str, float] = field(default_factory=dict)
    encode: Callable[[str], Sequence[int]] = lambda text: ()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request wants.

    sampling: of the first choice, its `max_tokens` not yet cut to the room.
    n: choices.  stop: strings that end the text.  include_stop: they and a stop token stay in it.
    echo: the prompt precedes the text.  max_tokens: None for all the room, 0 for only the prompt's
        logprobs; missing if `defaulted`.
    truncate: so many tokens of the prompt are used; -1 for as many as fit, None for all.
    left: the last of them, instead of the first.
    """

    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    echo: bool = False
    max_tokens: int | None = None
    defaulted: bool = False
    truncate: int | None = None
    left: bool = True
    salt: str = ""

    def choice(self, index: int, room: int, chat: bool) -> Sampling:
        """How to sample one of the choices. room: for its tokens, at least 1."""
        limit = self._limit(chat)
        tokens = room if limit is None else max(min(limit, room), 1)
        first = self.sampling
        return msgspec.structs.replace(
            first,
            max_tokens=tokens,
            min_tokens=min(first.min_tokens, tokens),
            seed=derived(first.seed, index),
            prompt_logprobs=first.prompt_logprobs if index == 0 else None,
        )

    def cut(self, longest: int, chat: bool) -> Cut | None:
        """What of a prompt is used; None for all. longest: of prompt and answer together.

        Raises INVALID_ARG if as much of a prompt is wanted as fits, and none does.
        """
        if self.truncate is None or self.truncate >= longest:
            return None
        if self.truncate > 0:
            return Cut(self.truncate, self.left)
        room = max(self._limit(chat) or 1, 1)
        if room >= longest:
            raise invalid(
                f"{room} tokens leave no room for a prompt",
                field="max_tokens",
                hint=f"with truncate_prompt_tokens of -1 use at most {longest - 1}",
            )
        return Cut(longest - room, self.left)

    def _limit(self, chat: bool) -> int | None:
        return DEFAULT_MAX_TOKENS if self.defaulted and not chat else self.max_tokens


def derived(seed: int, index: int) -> int:
    """The seed of a choice: the request's own for the first, unlike ones for the others."""
    return (seed + index * 0x9E3779B97F4A7C15) & (2**64 - 1)


def read(values: Mapping[str, Any], limits: Limits) -> Wishes:
    """What the parameters of a request say. Raises INVALID_ARG, naming the parameter, and
    UNSUPPORTED."""
    given = Values(values, limits.defaults)
    defaulted = "max_tokens" not in values and limits.defaults.get("max_tokens") is None
    limit = given.whole("max_tokens", 0, 2**31)
    wishes = Wishes(
        sampling=_sampling(given, limits, limit),
        n=given.whole("n", 1, MOST_CHOICES) or 1,
        stop=given.texts("stop", MOST_STOPS, MOST_STOP_TEXT, single=True),
        include_stop=given.flag("include_stop_str_in_output", False),
        skip_special_tokens=given.flag("skip_special_tokens", True),
        add_special_tokens=given.flag("add_special_tokens", True),
        echo=given.flag("echo", False),
        max_tokens=limit,
        defaulted=defaulted,
        truncate=given.whole("truncate_prompt_tokens", -1, 2**31),
        left=_left(given),
        salt=given.text("cache_salt"),
    )
    if limit == 0 and not wishes.echo and wishes.sampling.prompt_logprobs is None:
        raise invalid(
            "0 is out of range", field="max_tokens", hint="use 1 or more; 0 goes with echo only"
        )
    if wishes.truncate == 0:
        raise invalid("0 is out of range", field="truncate_prompt_tokens")
    _check_left(given.left())
    return wishes


def _sampling(given: Values, limits: Limits, limit: int | None) -> Sampling:
    vocab = limits.vocab_size
    temperature = given.number("temperature", 1.0, 0, 2)
    greedy = temperature < _GREEDY
    top_p = given.number("top_p", 1.0, 0, 1, above=True)
    top_k = given.whole("top_k", -1, 2**31) or 0
    min_p = given.number("min_p", 0.0, 0, 1)
    ignore_eos = given.flag("ignore_eos", False)
    stop = given.tokens("stop_token_ids", vocab, vocab) or []
    logprobs = _logprobs(given, "logprobs", limits)
    logprob_ids = given.tokens("logprob_token_ids", vocab, MOST_LOGPROB_IDS)
    if logprob_ids is not None and logprobs is None:
        raise invalid("it needs logprobs", field="logprob_token_ids", hint="set logprobs, too")
    return Sampling(
        temperature=0.0 if greedy else max(temperature, _COLDEST),
        top_p=1.0 if greedy else top_p,
        top_k=0 if greedy or top_k < 0 else top_k,
        min_p=0.0 if greedy else min_p,
        repetition_penalty=given.number("repetition_penalty", 1.0, 0, _LARGEST, above=True),
        presence_penalty=given.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=given.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_logit_bias(given.take("logit_bias"), vocab),
        allowed=_allowed(given, vocab),
        bad_words=_bad_words(given, limits),
        logprobs=logprobs,
        logprob_ids=logprob_ids,
        prompt_logprobs=_logprobs(given, "prompt_logprobs", limits),
        stop=sorted({*stop, *(() if ignore_eos else limits.eos)}),
        min_tokens=_min_tokens(given, limit),
        seed=_seed(given, limits.seed),
    )


_LARGEST = 1e30


def _left(given: Values) -> bool:
    side = given.text("truncation_side") or "left"
    if side not in _SIDES:
        raise invalid(
            f"{side[:LONGEST]!r} is no side",
            field="truncation_side",
            hint=f"use {' or '.join(_SIDES)}",
        )
    return side == "left"


def _min_tokens(given: Values, limit: int | None) -> int:
    most = given.whole("min_tokens", 0, 2**31) or 0
    if limit is not None and most > limit:
        raise invalid(f"{most} is more than max_tokens, {limit}", field="min_tokens")
    return most


def _seed(given: Values, default: int) -> int:
    seed = given.whole("seed", -(2**63), 2**64 - 1)
    if seed is None or seed == -1:
        return default or random.getrandbits(63)
    return seed & (2**64 - 1)


def _logprobs(given: Values, name: str, limits: Limits) -> int | None:
    value = given.take(name)
    if value is None or value is False:
        return None
    number = as_whole(name, value)
    most = limits.vocab_size if limits.max_logprobs < 0 else limits.max_logprobs
    if number == -1 and limits.max_logprobs < 0:
        return -1
    if not 0 <= number <= most:
        raise invalid(
            f"{number} is out of range", field=name, hint=f"use 0 to {most}, or raise max_logprobs"
        )
    return number


def _logit_bias(value: Any, vocab_size: int) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong("logit_bias", value, "an object of tokens and numbers")
    if len(value) > vocab_size:
        raise invalid(f"the vocabulary has {vocab_size} tokens only", field="logit_bias")
    bias: dict[int, float] = {}
    for key, given in value.items():
        field = f'logit_bias["{str(key)[:LONGEST]}"]'
        number = as_number(field, given)
        token = as_token(field, key, vocab_size)
        bias[token] = min(max(number, -_STRONGEST_BIAS), _STRONGEST_BIAS)
    return bias


def _allowed(given: Values, vocab_size: int) -> list[int] | None:
    allowed = given.tokens("allowed_token_ids", vocab_size, vocab_size)
    if allowed is not None and not allowed:
        raise invalid("it is empty", field="allowed_token_ids", hint="leave it out to allow all")
    return allowed


def _bad_words(given: Values, limits: Limits) -> list[list[int]]:
    """A word is also bad behind a space, if it is other tokens then."""
    found: dict[tuple[int, ...], None] = {}
    room = MOST_BAD_WORDS
    for word in given.texts("bad_words", MOST_BAD_WORDS, MOST_BAD_TEXT):
        for text in (word, " " + word.lstrip()):
            tokens = tuple(limits.encode(text))
            if tokens and tokens not in found:
                found[tokens] = None
                room -= len(tokens)
        if room < 0:
            raise invalid(
                f"they have more than {MOST_BAD_WORDS} tokens", field="bad_words", hint="use fewer"
            )
    return list(map(list, found))


_told: set[str] = set()
_MOST_TOLD = 1_000


def _check_left(left: Mapping[str, Any]) -> None:
    for name, value in left.items():
        if name in _REFUSED:
            if value is not None and value not in _REFUSED[name]:
                raise unsupported("this server does not have it", field=name)
        elif name not in _SILENT and name not in _told and len(_told) < _MOST_TOLD:
            _told.add(name)
            logger.warning("unknown sampling parameter '%s', ignored", name[:LONGEST])
