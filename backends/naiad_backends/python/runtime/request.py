"""pb_utils.InferenceRequest: what the server sends to `execute`, and what a model sends itself."""

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import link
from naiad_backends.python.runtime.memory import PreferredMemory
from naiad_backends.python.runtime.response import (
    ResponseIterator,
    checked_parameters,
)
from naiad_backends.python.runtime.sender import Conversation, InferenceResponseSender, Sink
from naiad_backends.python.runtime.tensor import Tensor

RESCHEDULE = 2
"""TRITONSERVER_REQUEST_RELEASE_RESCHEDULE."""

_RELEASES = (1, RESCHEDULE)


class InferenceTrace:
    """The trace that a request belongs to. Pass it on to requests for other models, whose traces
    then have this one as their parent."""

    __slots__ = ("_context", "origin")

    def __init__(self, context: str | None = None, origin: object = None) -> None:
        """origin: what the server finds it by."""
        self._context = context
        self.origin = origin

    def get_context(self) -> str | None:
        """The OpenTelemetry carrier as JSON text; None for a request that is not traced so."""
        return self._context


class InferenceRequest:
    """Source: Triton's Python backend, `pb_utils.InferenceRequest`."""

    __slots__ = (
        "_answer",
        "_conversation",
        "_correlation_id",
        "_flags",
        "_index",
        "_inputs",
        "_memory",
        "_model_name",
        "_model_version",
        "_outputs",
        "_parameters",
        "_request_id",
        "_sink",
        "_timeout",
        "_trace",
        "again",
        "decoupled",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """A request for another model. Inputs, requested_output_names and model_name are needed.

        model_version: -1 for the default.  timeout: microseconds, 0 for the model's own.
        Raises TritonModelException for values of another kind.
        """
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError("inputs, requested_output_names and model_name have to be given")
        if isinstance(correlation_id, bool) or not isinstance(correlation_id, int | str):
            raise TritonModelException("a correlation id is an int or a str")
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(
                    f"an input is a pb_utils.Tensor, not {type(tensor).__name__}"
                )
        self._request_id = str(request_id)
        self._correlation_id = correlation_id
        self._inputs = tuple(inputs)
        self._outputs = tuple(requested_output_names)
        self._model_name = model_name
        self._model_version = int(model_version)
        self._flags = int(flags)
        self._timeout = int(timeout)
        self._memory = preferred_memory
        self._trace = trace
        self._parameters = checked_parameters(parameters)
        self._sink: Sink | None = None
        self._index = 0
        self._answer: Conversation | None = None
        self._conversation: weakref.ref[Conversation] | None = None
        self.again = False
        self.decoupled = False

    @classmethod
    def received(
        cls,
        sink: Sink,
        index: int,
        decoupled: bool,
        id: str,
        correlation_id: int | str,
        flags: int,
        timeout: int,
        outputs: tuple[str, ...],
        parameters: dict[str, Any],
        inputs: tuple[Tensor, ...],
    ) -> "InferenceRequest":
        """One that came from the server, which needs no checks."""
        self = cls.__new__(cls)
        self._request_id = id
        self._correlation_id = correlation_id
        self._inputs = inputs
        self._outputs = outputs
        self._model_name = ""
        self._model_version = -1
        self._flags = flags
        self._timeout = timeout
        self._memory = None
        self._trace = None
        self._parameters = parameters
        self._sink = sink
        self._index = index
        self._answer = Conversation(sink, index, True) if decoupled else None
        self._conversation = None
        self.again = False
        self.decoupled = decoupled
        return self

    def inputs(self) -> list[Tensor]:
        """Optional inputs that were not given are absent."""
        return list(self._inputs)

    def request_id(self) -> str:
        """As the client sent it."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """The sequence that it belongs to; 0 or "" for none."""
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        """All of the model's if the client named none."""
        return list(self._outputs)

    def model_name(self) -> str:
        """The model that a request for another one is for."""
        return self._model_name

    def model_version(self) -> int:
        """The same; -1 for the default."""
        return self._model_version

    def preferred_memory(self) -> PreferredMemory | None:
        """Where the answer to a request for another model should lie."""
        return self._memory

    def flags(self) -> int:
        """Of the sequence: 1 for its start, 2 for its end, added up."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """The same, for a request to another model."""
        self._flags = int(flags)

    def timeout(self) -> int:
        """Microseconds, as sent."""
        return self._timeout

    def parameters(self) -> str:
        """All custom parameters as JSON text."""
        return json.dumps(self._parameters)

    def values(self) -> dict[str, Any]:
        """The parameters as they are."""
        return self._parameters

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the outputs that it asks for."""
        return self._outputs

    def trace(self) -> InferenceTrace:
        """What it belongs to; pass it on to requests for other models."""
        if self._trace is None and self._sink is not None:
            self._trace = InferenceTrace(None, self._sink.origin(self._index))
        return self._trace or InferenceTrace()

    # -- of the server's requests

    def is_cancelled(self) -> bool:
        """Whether the client has left or has cancelled."""
        return self._sink is not None and self._sink.cancelled(self._index)

    def get_response_sender(self) -> InferenceResponseSender:
        """Where responses go at any time and from any thread."""
        if self._sink is None:
            raise TritonModelException("only a request from the server has a response sender")
        conversation = self.conversation()
        if conversation is None:
            conversation = Conversation(self._sink, self._index, False)
            if self.has_had_sender:
                conversation.release()
            self._conversation = weakref.ref(conversation)
            self._answer = conversation
        return InferenceResponseSender(conversation)

    def let_go(self) -> None:
        """`execute` has returned: only senders hold on to the answer of a model that is not
        decoupled."""
        if not self.decoupled:
            self._answer = None

    def conversation(self) -> Conversation | None:
        """The answer that its senders share; None if there is none."""
        if self._answer is not None:
            return self._answer
        return self._conversation() if self._conversation is not None else None

    @property
    def has_had_sender(self) -> bool:
        """Whether a sender was asked for."""
        return self._conversation is not None

    def set_release_flags(self, flags: int) -> None:
        """TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: run the request again. Before `execute` returns.

        Raises TritonModelException for another flag, and for a request of the model's own.
        """
        if self._sink is None:
            raise TritonModelException("only a request from the server can be released")
        if flags not in _RELEASES:
            raise TritonModelException(f"{flags!r} is no release flag")
        self.again = flags == RESCHEDULE

    # -- of the model's requests

    def exec(self, decoupled: bool = False) -> Any:
        """Run it on its model and wait: an InferenceResponse, or an iterator over all of them.

        What goes wrong is a response with an error. Raises TritonModelException only where other
        models cannot be called.
        """
        if decoupled:
            return ResponseIterator(link().infer(self, True))
        return link().run(self)

    async def async_exec(self, decoupled: bool = False) -> Any:
        """The same without holding up the event loop."""
        call = link().infer(self, decoupled)
        if decoupled:
            return ResponseIterator(call)
        async for response in call.async_parts():
            return response
        raise TritonModelException("the model has given no response")
