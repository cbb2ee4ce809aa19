"""What each route of OpenAI's API does: decode, one data plane, encode. Errors have OpenAI's form.

Source: OpenAI's API, and vLLM's routes beside it.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.http import bodies, jsondata
from naiad.http.call import EVENTS, JSON, Answer, Call
from naiad.http.openai import (
    chat,
    completions,
    embeddings,
    errors,
    events,
    models,
    prompts,
    served,
    tokens,
)
from naiad.http.openai.choices import Choices
from naiad.http.openai.fields import Fields
from naiad.http.openai.form import Form
from naiad.http.openai.merged import AT_ONCE, Merged
from naiad.http.openai.requests import Generation
from naiad_backends.api import ModelSpec, Request
from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_backends.generation import TextTools

logger = logging.getLogger(__name__)

Handler = Callable[[Call], Awaitable[Answer]]
_Own = Callable[[Call, str], Awaitable[Answer]]

_REQUEST_ID = "x-request-id"
_IDENTIFIER = re.compile(r"[!-~]{1,128}")
_STREAMING = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_MOST_CHOICES = 4_096


class OpenAi:
    """The handlers of these routes over one data plane."""

    def __init__(
        self, dataplane: DataPlane, max_input: int, forward: HeaderForwarding | None
    ) -> None:
        """max_input: bound in bytes of a body.
        forward: which headers of requests go to the model."""
        self._dataplane = dataplane
        self._max_input = max_input
        self._forward = forward
        self._created = int(time.time())
        own: dict[str, _Own] = {
            "completions": self._completions,
            "chat_completions": self._chat,
            "embeddings": self._embeddings,
            "models": self._models,
            "model": self._model,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "health": self._health,
            "ping": self._health,
            "version": self._version,
        }
        self.handlers: Mapping[str, Handler] = {
            name: self._guarded(name, handler) for name, handler in own.items()
        }
        """By the names of the routes. They never raise but for cancellation."""

    def _guarded(self, name: str, handler: _Own) -> Handler:
        async def answer(call: Call) -> Answer:
            identifier = call.headers.get(_REQUEST_ID, "")
            if not _IDENTIFIER.fullmatch(identifier):
                identifier = uuid.uuid4().hex
            try:
                answer = await handler(call, identifier)
            except NaiadError as error:
                answer = errors.answer(error)
            except Exception:
                logger.exception("%s failed", name)
                answer = errors.answer(errors.MISTAKE)
            answer.headers = {**answer.headers, _REQUEST_ID: identifier}
            return answer

        return answer

    # -- text

    async def _completions(self, call: Call, identifier: str) -> Answer:
        fields = self._fields(call)
        spec = served.choose(self._dataplane, fields, served.generates)
        return await self._generate(
            call, identifier, spec, completions.read(fields), completions.Completions
        )

    async def _chat(self, call: Call, identifier: str) -> Answer:
        fields = self._fields(call)
        spec = served.choose(self._dataplane, fields, served.generates)
        tools = self._dataplane.text_tools(spec.name)
        if tools is not None and not tools.chats:
            raise unsupported(f"the model '{spec.name}' has no chat template", field="messages")
        return await self._generate(call, identifier, spec, chat.read(fields), chat.Chat)

    async def _generate(
        self, call: Call, identifier: str, spec: ModelSpec, wish: Generation, kind: type[Form]
    ) -> Answer:
        wish.model = spec.name
        if wish.n * len(wish.prompts) > _MOST_CHOICES:
            raise invalid(f"asks for more than {_MOST_CHOICES} choices", field="n")
        prepared = await self._prepare(spec, wish, identifier)
        self._note(call, [each.request for each in prepared])
        form = kind(wish, identifier, Choices(wish, prepared))
        streams = (self._dataplane.stream(each.request) for each in prepared)
        merged = Merged(streams, at_once=max(AT_ONCE // wish.n, 1))
        if not wish.stream:
            return Answer((await events.whole(form, merged),))
        stream = events.stream(form, merged)
        await anext(stream)
        return Answer(content_type=EVENTS, headers=_STREAMING, events=stream)

    async def _prepare(
        self, spec: ModelSpec, wish: Generation, identifier: str
    ) -> list[prompts.Prepared]:
        if not prompts.needs_tools(wish):
            return prompts.prepare(spec, None, wish, identifier)
        tools = self._tools(spec.name)
        return await asyncio.to_thread(prompts.prepare, spec, tools, wish, identifier)

    # -- vectors

    async def _embeddings(self, call: Call, identifier: str) -> Answer:
        fields = self._fields(call)
        spec = served.choose(self._dataplane, fields, served.embeds)
        wish = embeddings.read(fields)
        if wish.cuts and self._dataplane.text_tools(spec.name) is None:
            raise unsupported(f"the model '{spec.name}' cuts no texts", field=wish.cuts)
        requests = embeddings.requests_of(spec, wish, identifier)
        self._note(call, requests)
        responses = await embeddings.run(self._dataplane, requests)
        return Answer((embeddings.encode(spec, responses, wish, identifier),))

    # -- everything else

    async def _models(self, call: Call, identifier: str) -> Answer:
        return _json(models.every(self._dataplane, self._created))

    async def _model(self, call: Call, identifier: str) -> Answer:
        return _json(models.one(self._dataplane, call.names["model"], self._created))

    async def _tokenize(self, call: Call, identifier: str) -> Answer:
        return await self._with_tools(call, tokens.tokenize)

    async def _detokenize(self, call: Call, identifier: str) -> Answer:
        return await self._with_tools(call, tokens.detokenize)

    async def _with_tools(
        self, call: Call, work: Callable[[TextTools, Fields], dict[str, Any]]
    ) -> Answer:
        fields = self._fields(call)
        spec = served.choose(self._dataplane, fields, served.either)
        return _json(await asyncio.to_thread(work, self._tools(spec.name), fields))

    async def _health(self, call: Call, identifier: str) -> Answer:
        return Answer(status=200 if await self._dataplane.ready() else 503)

    async def _version(self, call: Call, identifier: str) -> Answer:
        return _json({"version": self._dataplane.version})

    # -- what they share

    def _fields(self, call: Call) -> Fields:
        kind = call.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind != JSON:
            raise invalid(f"is '{kind[:80]}'", field="Content-Type", hint=f"send {JSON}")
        body = bodies.plain(call, self._max_input)
        bodies.bound(len(body), self._max_input)
        return Fields(jsondata.loads(memoryview(body)))

    def _tools(self, model: str) -> TextTools:
        tools = self._dataplane.text_tools(model)
        if tools is None:
            raise unsupported(
                f"the server does not know the tokens of model '{model}'", field="model"
            )
        return tools

    def _note(self, call: Call, requests: Sequence[Request]) -> None:
        """What goes along with requests: headers that are forwarded, and a trace of the first."""
        if self._forward is not None:
            for request in requests:
                self._forward(request, call.received)
        if call.arrival is not None:
            call.begin_trace(self._dataplane, requests[0])


def _json(document: Any) -> Answer:
    return Answer((orjson.dumps(document),))
