"""An instance of a model that writes text: requests to the engine, its tokens to answers.

The engine gets everything at once and queues it itself. Lives on the event loop; long prompts
become tokens beside it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import orjson

from naiad_backends import generation
from naiad_backends.api import (
    Done,
    Execution,
    InstanceState,
    Placement,
    Request,
    Responder,
    Response,
)
from naiad_backends.errors import NaiadError, QueueFull, internal, invalid, unavailable
from naiad_backends.llm import parameters, prompt
from naiad_backends.llm.answers import Answer, Facts, StreamedAnswer, flag_of, text_of, wanted
from naiad_backends.llm.choices import Choice
from naiad_backends.llm.messages import Abort, Add, FromEngine, Output, Outputs, Ready, Start
from naiad_backends.llm.metrics import EngineMetrics
from naiad_backends.llm.parameters import Limits, Wishes
from naiad_backends.llm.prompt import Prompt
from naiad_backends.llm.remote import EngineInstance
from naiad_backends.llm.text.tools import ModelText
from naiad_backends.services import Services

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Work:
    """A request on its way. began: when it came, by `time.perf_counter()`.
    answer: None until its prompt is tokens.  texts: those that the engine has."""

    request: Request
    responder: Responder
    wishes: Wishes
    prompt: Prompt
    began: float
    answer: Answer | None = None
    texts: "dict[int, _Text]" = field(default_factory=dict)
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Text:
    """One text that the engine writes. prompt, limit: tokens.
    first, last: its first and latest token, by `time.perf_counter()`; 0 for not yet."""

    number: int
    work: _Work
    answer: Answer
    choice: Choice
    prompt: int
    limit: int
    first: float = 0.0
    last: float = 0.0
    queued: float = 0.0


class LlmInstance(EngineInstance):
    """Its methods are those of the contract; `start` comes first."""

    def __init__(
        self,
        services: Services,
        placement: Placement,
        begin: Start,
        text: ModelText,
        limits: Limits,
        metrics: EngineMetrics,
    ) -> None:
        super().__init__(services, placement, begin)
        self._tokenizer = text.tokenizer
        self._tools = text
        self._limits = limits
        self._metrics = metrics
        self._longest = 0
        self._texts: dict[int, _Text] = {}
        self._last_number = 0
        self._usual_seconds = 1.0
        self._aborted: list[int] = []

    # -- the way to the engine

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        """The instance is free at once: the engine takes all that comes."""
        if self.state is not InstanceState.READY:
            done(None)
            return
        for request, responder in zip(requests, responders, strict=True):
            try:
                self._accept(request, responder)
            except NaiadError as error:
                responder.send(Response(error=error), final=True)
            except Exception as error:
                logger.exception("a request to '%s' failed", self.name)
                responder.send(Response(error=_mistake(error)), final=True)
        done(Execution([Response()] * len(requests)))

    def _accept(self, request: Request, responder: Responder) -> None:
        wishes = parameters.read(_values(request), self._limits)
        given = prompt.read(request, self._limits.vocab_size, wishes.add_special_tokens)
        cut = wishes.cut(self._longest, given.chat is not None)
        work = _Work(request, responder, wishes, given, time.perf_counter())
        self._enter(wishes.n)
        request.on_cancel = partial(self._cancel, work)
        encode = partial(given.encode, self._tools, self._longest, cut)
        if given.long:
            encoding = self._loop.run_in_executor(None, encode)
            encoding.add_done_callback(lambda done: self._begin_work(work, done.result))
        else:
            self._begin_work(work, encode)

    def _enter(self, texts: int) -> None:
        try:
            self._queue.enter(texts, self._retry_after_s)
        except QueueFull:
            self._metrics.add("admission_rejections_total", "max_num_queued_reqs")
            raise

    def refusal(self, waiting: int) -> QueueFull | None:
        error = super().refusal(waiting)
        if error is not None:
            self._metrics.add("admission_rejections_total", "max_num_queued_reqs")
        return error

    @property
    def _retry_after_s(self) -> int:
        return max(math.ceil(self._usual_seconds), 1)

    def _begin_work(self, work: _Work, encode: Callable[[], Sequence[int]]) -> None:
        """Its prompt is tokens, or cannot be."""
        if work.ended:
            return
        try:
            tokens = encode()
            if len(tokens) >= self._longest:
                raise prompt.too_long(len(tokens), self._longest)
            self._send(work, tokens)
        except NaiadError as error:
            self._fail(work, error)
        except Exception as error:
            logger.exception("a prompt for '%s' failed", self.name)
            self._fail(work, _mistake(error))

    def _send(self, work: _Work, tokens: Sequence[int]) -> None:
        if self.state is not InstanceState.READY:
            raise unavailable(f"'{self.name}' cannot run now: {self.trouble()}")
        wishes, request = work.wishes, work.request
        names = wanted(request)
        chat = work.prompt.chat is not None
        adds, room, shared = [], self._longest - len(tokens), list(tokens)
        for index in range(wishes.n):
            sampling = wishes.choice(index, room, chat)
            if sampling.logprobs is None and generation.CUMULATIVE_LOGPROB in names:
                sampling = msgspec.structs.replace(sampling, logprobs=0)
            adds.append(
                Add(
                    self._last_number + 1 + index,
                    shared,
                    sampling,
                    request.priority,
                    time.time() + request.timeout_us / 1e6 if request.timeout_us else 0.0,
                    wishes.salt,
                )
            )
        answer = self._answer(work, tokens, names, adds[0].sampling.min_tokens)
        self._enter_tokens(len(tokens) * wishes.n)
        work.answer = answer
        self._last_number += wishes.n
        for choice, add in zip(answer.choices, adds, strict=True):
            limit = add.sampling.max_tokens
            text = _Text(add.number, work, answer, choice, len(tokens), limit)
            self._texts[add.number] = work.texts[add.number] = text
            self._process.send(add)

    def _enter_tokens(self, tokens: int) -> None:
        try:
            self._queue.add_tokens(tokens, self._retry_after_s)
        except QueueFull:
            self._metrics.add("admission_rejections_total", "max_num_queued_tokens")
            raise

    def _answer(
        self, work: _Work, tokens: Sequence[int], names: Sequence[str], least: int
    ) -> Answer:
        wishes, request = work.wishes, work.request
        choices = [
            Choice(index, self._tokenizer, tokens, wishes, least) for index in range(wishes.n)
        ]
        stream = flag_of(request, generation.STREAM, False)
        if wishes.echo or _prepended(request, stream):
            text = work.prompt.written(self._tools)
            for choice in choices:
                choice.precede(text)
        facts = Facts(self._tokenizer, len(tokens))
        return (StreamedAnswer if stream else Answer)(work.responder, choices, facts, names)

    # -- the way back

    def _ready(self, ready: Ready) -> None:
        cache = (ready.blocks - 1) * ready.block_size + 1
        self._longest = min(ready.max_model_len, cache)
        self._metrics.begin(ready)

    def _take(self, message: FromEngine) -> None:
        if not isinstance(message, Outputs):
            raise ValueError(f"an engine that writes says {type(message).__name__}")
        now = time.perf_counter()
        tokens = 0
        for output in message.outputs:
            text = self._texts.get(output.number)
            # Those that were aborted have none.
            if text is not None:
                tokens += len(output.tokens)
                self._hear_safely(text, output, now)
        if tokens:
            self._metrics.add("generation_tokens_total", number=tokens)
        self._metrics.stats(message.stats)
        self._abort()

    def _hear_safely(self, text: _Text, output: Output, now: float) -> None:
        """A mistake costs one request, not all that the engine writes."""
        try:
            self._hear(text, output, now)
        except Exception as error:
            logger.exception("an answer of '%s' failed", self.name)
            self._fail(text.work, _mistake(error))

    def _hear(self, text: _Text, output: Output, now: float) -> None:
        if output.finish == "error" or (output.finish == "timeout" and not text.first):
            self._fail(text.work, self._ended(output))
            return
        if output.tokens:
            if text.first:
                self._metrics.observe("inter_token_latency_seconds", now - text.last)
            else:
                self._first(text, output, now)
            text.last = now
        answer, choice = text.answer, text.choice
        answer.take(choice, output)
        if choice.finished:
            self._finish(text, choice.finish, now)
            if not output.finish:
                # By a stop string, which the engine knows nothing of.
                self._aborted.append(text.number)

    def _ended(self, output: Output) -> NaiadError:
        if output.finish == "timeout":
            return unavailable("its time was up before it could begin")
        return internal(f"the engine of '{self.name}' failed: {output.error}")

    def _first(self, text: _Text, output: Output, now: float) -> None:
        text.first, text.queued = now, output.queued
        self._queue.tokens -= text.prompt
        text.answer.facts.cached = max(text.answer.facts.cached, output.cached)
        self._metrics.observe("time_to_first_token_seconds", now - text.work.began)
        self._metrics.add("prompt_tokens_total", number=text.prompt)
        self._metrics.add("prompt_tokens_cached_total", number=output.cached)

    # -- the ends

    def _finish(self, text: _Text, reason: str, now: float) -> None:
        """A text has come to its end."""
        work = text.work
        self._forget(text)
        seconds = now - work.began
        self._usual_seconds += 0.1 * (seconds - self._usual_seconds)
        self._metrics.finished(
            reason,
            seconds=seconds,
            queued=text.queued,
            first=text.first - work.began,
            decode=text.last - text.first,
            prompt=text.prompt,
            tokens=text.choice.count,
            limit=text.limit,
        )
        if not work.texts:
            work.ended = True
            self._metrics.observe("request_params_n", work.wishes.n)

    def _forget(self, text: _Text) -> None:
        del self._texts[text.number]
        del text.work.texts[text.number]
        if not text.first:
            self._queue.tokens -= text.prompt
        self._queue.leave(1)

    def _drop(self, work: _Work, reason: str) -> None:
        """The engine need not go on with any text of it."""
        work.ended = True
        if work.answer is None:
            self._queue.leave(work.wishes.n)
        for text in list(work.texts.values()):
            self._aborted.append(text.number)
            self._forget(text)
            self._metrics.add("request_success_total", reason)

    def _fail(self, work: _Work, error: NaiadError) -> None:
        """End a request with an error."""
        self._drop(work, "error")
        self._abort()
        work.responder.send(Response(error=error), final=True)

    def _cancel(self, work: _Work) -> None:
        """Nobody waits for it any more."""
        if not work.ended:
            self._drop(work, "abort")
            self._abort()
            work.responder.send(None, final=True)

    def _abort(self) -> None:
        """Tell the engine of the texts that it can stop."""
        if self._aborted:
            self._process.send(Abort(self._aborted))
            self._aborted = []

    def _lose(self, error: NaiadError) -> None:
        lost = {id(text.work): text.work for text in self._texts.values()}
        for work in lost.values():
            self._drop(work, "error")
            work.responder.send(Response(error=error), final=True)
        self._aborted = []
        self._metrics.lost()

    async def _close(self) -> None:
        await super()._close()
        self._metrics.close()


def _values(request: Request) -> Mapping[str, Any]:
    """The parameters of a request: those that came along with it, and before them those of the
    input."""
    text = text_of(request, generation.SAMPLING_PARAMETERS)
    if not text:
        return request.parameters
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid(f"it is no JSON: {error}", field=generation.SAMPLING_PARAMETERS) from error
    if not isinstance(values, dict):
        raise invalid("it is no JSON object", field=generation.SAMPLING_PARAMETERS)
    return {**request.parameters, **values}


def _prepended(request: Request, stream: bool) -> bool:
    """Whether the prompt precedes the text, as in Triton's vLLM backend."""
    excluded = flag_of(request, generation.EXCLUDE_INPUT, stream)
    if stream and not excluded:
        raise invalid(
            "with stream the prompt does not precede the text",
            field=generation.EXCLUDE_INPUT,
            hint="leave it out, or set echo in sampling_parameters",
        )
    return not excluded


def _mistake(error: Exception) -> NaiadError:
    return internal(f"the model failed: {type(error).__name__}: {error}")
