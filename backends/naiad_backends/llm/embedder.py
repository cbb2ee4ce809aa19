"""An instance of a model that embeds: texts of requests to the engine, its vectors to answers.

The engine gets everything at once and makes its own batches. Lives on the event loop; many or long
texts become tokens beside it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from naiad_backends import generation
from naiad_backends.api import (
    Done,
    Execution,
    InstanceState,
    Placement,
    Request,
    Responder,
    Response,
    Tensor,
)
from naiad_backends.errors import NaiadError, internal, invalid, unavailable
from naiad_backends.llm import shaping
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.messages import Abort, FromEngine, Outputs, Pool, Ready, Start, Vectors
from naiad_backends.llm.remote import EngineInstance
from naiad_backends.llm.shaping import WHOLE, Shaping
from naiad_backends.llm.text.cutting import Cut
from naiad_backends.llm.text.tools import ModelText
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

_LONG = 2_048
"""Characters whose tokens are made beside the event loop: a millisecond or so."""

_RETRY_AFTER_S = 1


@dataclass(slots=True, eq=False)
class _Batch:
    """What the server has handed over at once. left: requests that have no response yet."""

    done: Done
    responses: list[Response]
    left: int


@dataclass(slots=True, eq=False)
class _Work:
    """One request. place: in its batch.  texts: how many.  shaping: once it is read.
    vectors: [texts, dimensions], as they come.  tokens: of each text.  waiting: numbers of the
    texts that the engine has."""

    request: Request
    batch: _Batch
    place: int
    texts: int
    shaping: Shaping = WHOLE
    vectors: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    tokens: list[int] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    ended: bool = False


class Embedder(EngineInstance):
    """Its methods are those of the contract; `start` comes first."""

    def __init__(
        self,
        services: Services,
        placement: Placement,
        begin: Start,
        text: ModelText,
        encoder: Encoder,
    ) -> None:
        super().__init__(services, placement, begin)
        self._text = text
        self._encoder = encoder
        self._longest = self._dimensions = self._vocab_size = 0
        self._texts: dict[int, tuple[_Work, int]] = {}
        self._last_number = 0

    # -- the way to the engine

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        if self.state is not InstanceState.READY:
            done(None)
            return
        batch = _Batch(done, [Response() for _ in requests], len(requests))
        for place, request in enumerate(requests):
            self._accept(request, batch, place)

    def _accept(self, request: Request, batch: _Batch, place: int) -> None:
        texts, characters = _size(request)
        work = _Work(request, batch, place, texts)
        try:
            work.shaping = shaping.read(request.parameters, self._encoder, self._longest)
            self._queue.enter(texts, _RETRY_AFTER_S)
        except NaiadError as error:
            work.texts = 0
            self._answer(work, Response(error=error))
            return
        request.on_cancel = partial(self._cancel, work)
        if characters > _LONG:
            encoding = self._loop.run_in_executor(None, self._encoded, work)
            encoding.add_done_callback(lambda future: self._send(work, future.result()))
        else:
            self._send(work, self._encoded(work))

    def _encoded(self, work: _Work) -> Sequence[Sequence[int]] | NaiadError:
        """The tokens of each text, or what is wrong with one. On any thread."""
        try:
            special = self._text.tokenizer.special_ids
            texts = [work.shaping.cut(text, special) for text in self._tokens(work)]
            for text in texts:
                if not 0 < len(text) <= self._longest:
                    raise shaping.too_long(len(text), self._longest)
            return texts
        except NaiadError as error:
            return error
        except Exception as error:
            logger.exception("a text for '%s' failed", self.name)
            return internal(f"the model failed: {type(error).__name__}: {error}")

    def _tokens(self, work: _Work) -> Sequence[Sequence[int]]:
        request, longest = work.request, self._longest
        if len(request.inputs) != 1:
            raise invalid(
                "give either texts or tokens",
                field=generation.TEXT_INPUT,
                hint=f"one of {generation.TEXT_INPUT} and {generation.INPUT_IDS}",
            )
        if generation.INPUT_IDS in request.inputs:
            array = request.inputs[generation.INPUT_IDS].numpy()
            if array.size and not 0 <= array.min() <= array.max() < self._vocab_size:
                raise invalid(
                    f"tokens are from 0 to {self._vocab_size - 1}", field=generation.INPUT_IDS
                )
            rows: list[list[int]] = array.tolist()
            return rows
        try:
            texts = [
                bytes(text).decode() for text in request.inputs[generation.TEXT_INPUT].numpy().flat
            ]
        except UnicodeDecodeError as error:
            raise invalid(
                f"byte {error.start} is not UTF-8: {error.reason}", field=generation.TEXT_INPUT
            ) from error
        wish, tokenizer = work.shaping, self._text.tokenizer
        if wish.most is not None:
            cut = Cut(wish.most, wish.left)
            texts = [tokenizer.part(text, cut) for text in texts]
        for text in texts:
            if wish.most is None and self._text.exceeds(text, longest):
                raise shaping.too_long(f"more than {longest}", longest)
            self._text.check_length(text)
        return tokenizer.encode_batch(texts)

    def _send(self, work: _Work, texts: Sequence[Sequence[int]] | NaiadError) -> None:
        if work.ended:
            return
        if self.state is not InstanceState.READY:
            texts = unavailable(f"'{self.name}' cannot run now: {self.trouble()}")
        if isinstance(texts, NaiadError):
            self._answer(work, Response(error=texts))
            return
        work.tokens = [len(tokens) for tokens in texts]
        work.vectors = np.empty((work.texts, self._dimensions), np.float32)
        for row, tokens in enumerate(texts):
            self._last_number += 1
            self._texts[self._last_number] = work, row
            work.waiting.add(self._last_number)
            self._process.send(Pool(self._last_number, list(tokens)))

    # -- the way back

    def _ready(self, ready: Ready) -> None:
        self._longest, self._dimensions = ready.max_model_len, ready.dimensions
        self._vocab_size = ready.vocab_size

    def _take(self, message: FromEngine) -> None:
        match message:
            case Vectors():
                rows = np.frombuffer(message.data, "<f4").reshape(-1, self._dimensions)
                for number, vector in zip(message.numbers, rows, strict=True):
                    self._enter(number, vector)
            case Outputs():
                for output in message.outputs:
                    if output.number in self._texts:
                        error = internal(f"the engine of '{self.name}' failed: {output.error}")
                        self._drop(self._texts[output.number][0], Response(error=error))
            case _:
                raise ValueError(f"an engine that embeds says {type(message).__name__}")

    def _enter(self, number: int, vector: npt.NDArray[np.float32]) -> None:
        # Those that were aborted are not there.
        if number not in self._texts:
            return
        work, row = self._texts.pop(number)
        work.waiting.remove(number)
        work.vectors[row] = vector
        if not work.waiting:
            work.vectors = work.shaping.shorten(work.vectors, self._encoder.normalize)
            self._answer(work, Response(_outputs(work)))

    # -- the ends

    def _answer(self, work: _Work, response: Response) -> None:
        """A request is over."""
        work.ended = True
        self._queue.leave(work.texts)
        batch = work.batch
        batch.responses[work.place] = response
        batch.left -= 1
        if not batch.left:
            batch.done(Execution(batch.responses))

    def _drop(self, work: _Work, response: Response) -> None:
        """The engine need not go on with any text of it."""
        for number in work.waiting:
            del self._texts[number]
        if work.waiting:
            self._process.send(Abort(sorted(work.waiting)))
        self._answer(work, response)

    def _cancel(self, work: _Work) -> None:
        if not work.ended:
            self._drop(work, Response())

    def _lose(self, error: NaiadError) -> None:
        lost = {id(work): work for work, _ in self._texts.values()}
        self._texts.clear()
        for work in lost.values():
            self._answer(work, Response(error=error))


def _size(request: Request) -> tuple[int, int]:
    """How many texts, and how many bytes of them."""
    for tensor in request.inputs.values():
        if tensor.datatype == "BYTES":
            return tensor.shape[0], sum(len(text) for text in tensor.numpy().flat)
        return tensor.shape[0], 0
    return 1, 0


def _outputs(work: _Work) -> list[Tensor]:
    names = work.request.outputs or (generation.EMBEDDING, generation.NUM_INPUT_TOKENS)
    made = []
    if generation.EMBEDDING in names:
        made.append(Tensor.from_numpy(generation.EMBEDDING, work.vectors))
    if generation.NUM_INPUT_TOKENS in names:
        counts = np.array(work.tokens, np.uint32)[:, None]
        made.append(Tensor.from_numpy(generation.NUM_INPUT_TOKENS, counts))
    return made
