"""What each route does: Call -> data plane -> Answer, and the last resort for errors.

Knows no sockets: `server` and `lean` bring calls here and send the answers.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson

from naiad.core.cuda_memory import CudaRegion
from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.core.responses import Part
from naiad.core.shared_memory import NO_REGIONS, Lease
from naiad.core.system_memory import SystemRegion
from naiad.http import (
    admin,
    bodies,
    compression,
    errors,
    generate,
    jsondata,
    openapi,
    regions,
    routes,
    v2,
)
from naiad.http.call import BINARY, EVENTS, Answer, Call
from naiad.http.openai import errors as openai_errors
from naiad.http.openai.service import OpenAi
from naiad.http.remembered import Decoder, Encoder
from naiad_backends.api import Request, Response
from naiad_backends.errors import NaiadError, internal, invalid

logger = logging.getLogger(__name__)

HEADER_LENGTH = "Inference-Header-Content-Length"

_HEADER_LENGTH_KEY = HEADER_LENGTH.lower()

_QUICK = 65_536
"""Bytes that are compressed on the event loop: one or two milliseconds."""

_MISTAKE = "the server made a mistake; its log tells more"

Handler = Callable[[Call], Awaitable[Answer]]


class HttpService:
    """The handlers of all routes over one data plane."""

    def __init__(
        self, dataplane: DataPlane, max_input: int, forward: HeaderForwarding | None = None
    ) -> None:
        """max_input: bound in bytes of the JSON part, a raw input and an inflated body.
        forward: which headers of inference requests go to the model."""
        self._dataplane = dataplane
        self.tracing = dataplane.tracing
        """Whoever receives calls asks this whether to note when they came."""
        self._max_input = max_input
        self._decoder = Decoder(max_input)
        self._encoder = Encoder()
        self._forward = forward
        self._handlers: dict[str, Handler] = {
            "infer": self._infer,
            "generate": self._generate,
            "generate_stream": self._generate_stream,
            "live": self._live,
            "ready": self._ready,
            "server_metadata": self._server_metadata,
            "openapi": self._openapi,
            "model_metadata": self._model_metadata,
            "model_ready": self._model_ready,
            "model_config": self._model_config,
            "statistics": self._statistics,
            "log_settings": self._log_settings,
            "update_log": self._update_log,
            "trace_settings": self._trace_settings,
            "update_trace": self._update_trace,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "system_status": self._system_status,
            "register_system": self._register_system,
            "unregister_system": self._unregister_system,
            "cuda_status": self._cuda_status,
            "register_cuda": self._register_cuda,
            "unregister_cuda": self._unregister_cuda,
            **OpenAi(dataplane, max_input, forward).handlers,
        }

    async def answer(self, handler: str, call: Call) -> Answer:
        """Carry out a call. Never raises but for cancellation."""
        try:
            return await self._handlers[handler](call)
        except NaiadError as error:
            return errors.answer(error)
        except Exception:
            logger.exception("%s of %s failed", handler, dict(call.names))
            return errors.answer(internal(_MISTAKE))
        finally:
            if call.trace is not None:
                call.trace.mark("HTTP_SEND_START")

    # -- inference

    def _infer(self, call: Call) -> Awaitable[Answer]:
        lease = self._dataplane.shared_memory.lease()
        return self._infer_with(call, lease) if lease is NO_REGIONS else self._leased(call, lease)

    async def _leased(self, call: Call, lease: Lease) -> Answer:
        with lease:
            return await self._infer_with(call, lease)

    async def _infer_with(self, call: Call, lease: Lease) -> Answer:
        model, version = _model(call)
        spec = self._dataplane.spec(model, version)
        body = bodies.plain(call, self._max_input)
        length = _header_length(call.headers.get(_HEADER_LENGTH_KEY), len(body))
        if length == 0:
            bodies.bound(len(body), self._max_input)
            request, form = v2.decode_raw(spec, version, body)
        else:
            request, form = self._decoder.decode(model, version, body, length, lease)
            if lease.unread:
                await lease.read()
        if self._forward is not None:
            self._forward(request, call.received)
        if call.arrival is not None:
            call.begin_trace(self._dataplane, request)
        response = await self._dataplane.infer(request)
        head, binary = self._encoder.encode(request, response, form)
        if lease.unwritten:
            await lease.write()
        if not binary:
            answer = Answer((head,))
        else:
            answer = Answer((head, *binary), BINARY, 200, {HEADER_LENGTH: str(len(head))})
        accepted = call.headers.get("accept-encoding")
        if accepted is not None:
            await _compress(answer, accepted)
        return answer

    async def _generate(self, call: Call) -> Answer:
        request = self._generate_request(call)
        responses: list[Response] = []
        async with aclosing(self._dataplane.stream(request)) as parts:
            async for part in parts:
                if part.response is not None:
                    responses.append(part.response)
                if len(responses) > 1:
                    break
        if len(responses) != 1:
            raise internal(
                f"the model gave {'no response' if not responses else 'several responses'}",
                hint="use generate_stream",
            )
        return Answer((generate.encode(request, responses[0]),))

    async def _generate_stream(self, call: Call) -> Answer:
        request = self._generate_request(call)
        parts = self._dataplane.stream(request)
        try:
            # What goes wrong before the first response still has a status of its own.
            first = await anext(parts)
            events = _events(request, first, parts)
        except BaseException:
            await parts.aclose()
            raise
        return Answer(content_type=EVENTS, events=events)

    def _generate_request(self, call: Call) -> Request:
        model, version = _model(call)
        spec = self._dataplane.spec(model, version)
        if call.headers.get("content-encoding", "identity").lower() != "identity":
            raise invalid("generate takes no compressed body", field="Content-Encoding")
        bodies.bound(len(call.body), self._max_input)
        request = generate.decode(spec, version, jsondata.loads(memoryview(call.body)))
        if call.arrival is not None:
            call.begin_trace(self._dataplane, request)
        return request

    # -- everything else

    async def _live(self, call: Call) -> Answer:
        live = self._dataplane.live()
        return _json({"live": live}, 200 if live else 503)

    async def _ready(self, call: Call) -> Answer:
        ready = await self._dataplane.ready()
        return _json({"ready": ready}, 200 if ready else 503 if self._dataplane.stopping else 400)

    async def _server_metadata(self, call: Call) -> Answer:
        return _json(admin.server_metadata(self._dataplane))

    async def _openapi(self, _: Call) -> Answer:
        return Answer((await asyncio.to_thread(openapi.serialised),))

    async def _model_metadata(self, call: Call) -> Answer:
        return _json(admin.model_metadata(self._dataplane, *_model(call)))

    async def _model_ready(self, call: Call) -> Answer:
        model, version = _model(call)
        reason = await self._dataplane.unready(model, version)
        if reason:
            raise errors.NotReady(model, reason)
        return _json({"name": model, "ready": True})

    async def _model_config(self, call: Call) -> Answer:
        return _json(self._dataplane.model_config(*_model(call)).to_json())

    async def _statistics(self, call: Call) -> Answer:
        return _json(admin.statistics(self._dataplane, *_model(call)))

    async def _log_settings(self, call: Call) -> Answer:
        return _json(self._dataplane.log.settings.document())

    async def _update_log(self, call: Call) -> Answer:
        return _json(admin.update_log(self._dataplane, self._options(call)))

    async def _trace_settings(self, call: Call) -> Answer:
        model, _ = _model(call)
        return _json(self._dataplane.trace_settings(model).document())

    async def _update_trace(self, call: Call) -> Answer:
        model, _ = _model(call)
        return _json(admin.update_trace(self._dataplane, model, self._options(call)))

    async def _index(self, call: Call) -> Answer:
        repository = call.names.get("repository", "")
        return _json(await admin.index(self._dataplane, repository, self._options(call)))

    async def _load(self, call: Call) -> Answer:
        repository = call.names.get("repository", "")
        await admin.load(self._dataplane, repository, call.names["model"], self._options(call))
        return Answer()

    async def _unload(self, call: Call) -> Answer:
        repository = call.names.get("repository", "")
        await admin.unload(self._dataplane, repository, call.names["model"], self._options(call))
        return Answer()

    async def _system_status(self, call: Call) -> Answer:
        return _json(regions.status(self._dataplane.shared_memory, _region(call)))

    async def _register_system(self, call: Call) -> Answer:
        options = self._options(call)
        await regions.register(self._dataplane.shared_memory, _region(call), options)
        return Answer()

    async def _unregister_system(self, call: Call) -> Answer:
        self._dataplane.shared_memory.unregister(SystemRegion, _region(call))
        return Answer()

    async def _cuda_status(self, call: Call) -> Answer:
        return _json(regions.cuda_status(self._dataplane.shared_memory, _region(call)))

    async def _register_cuda(self, call: Call) -> Answer:
        options = self._options(call)
        await regions.register_cuda(self._dataplane.shared_memory, _region(call), options)
        return Answer()

    async def _unregister_cuda(self, call: Call) -> Answer:
        self._dataplane.shared_memory.unregister(CudaRegion, _region(call))
        return Answer()

    def _options(self, call: Call) -> Any:
        """The optional JSON body of a call that has no tensors."""
        body = bodies.plain(call, self._max_input)
        bodies.bound(len(body), self._max_input)
        return jsondata.loads(bytes(body)) if body else None


def refusal(path: str, error: NaiadError) -> Answer:
    """The answer to a call that leads nowhere, in the form of the API that its path belongs to."""
    return openai_errors.answer(error) if path.startswith(routes.OPENAI) else errors.answer(error)


async def _events(
    request: Request, first: Part, parts: AsyncGenerator[Part, None]
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of all responses; an error is the last one."""
    async with aclosing(parts):
        try:
            if first.response is not None:
                yield generate.event(generate.encode(request, first.response))
            async for part in parts:
                if part.response is not None:
                    yield generate.event(generate.encode(request, part.response))
        except NaiadError as error:
            yield generate.event(errors.body(error))
        except Exception:
            logger.exception("a stream of model '%s' failed", request.model_name)
            yield generate.event(errors.body(internal(_MISTAKE)))


def _model(call: Call) -> tuple[str, str]:
    return call.names.get("model", ""), call.names.get("version", "")


def _region(call: Call) -> str:
    return call.names.get("region", "")


def _json(document: Any, status: int = 200) -> Answer:
    return Answer((orjson.dumps(document),), status=status)


async def _compress(answer: Answer, accepted: str) -> None:
    """Give the answer the content encoding that the client likes best."""
    encoding = compression.choose(accepted)
    size = answer.size
    if encoding == compression.IDENTITY or size < compression.SMALLEST:
        return
    if size <= _QUICK:
        body = compression.deflate(answer.parts, encoding)
    else:
        body = await asyncio.to_thread(compression.deflate, answer.parts, encoding)
    answer.parts = (body,)
    answer.headers = {**answer.headers, "Content-Encoding": encoding}


def _header_length(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) > size:
        raise invalid(
            f"'{text[:40]}' is not a length from 0 to {size}, the size of the body",
            field=HEADER_LENGTH,
        )
    return int(text)
