"""pb_utils.InferenceResponse, its parameters, and the iterator over several."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from naiad_backends.python.runtime.errors import TritonError, TritonModelException
from naiad_backends.python.runtime.link import Call
from naiad_backends.python.runtime.tensor import Tensor


def checked_parameters(parameters: Any) -> dict[str, Any]:
    """Parameters that a model gives. Raises TritonModelException unless they are a dict of str to
    bool, int or str."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise TritonModelException(f"parameters are a dict, not {type(parameters).__name__}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | str):
            raise TritonModelException(
                f"parameter {name!r}: {value!r} must be a text and a bool, int or str"
            )
    return dict(parameters)


class InferenceResponse:
    """Source: Triton's Python backend, `pb_utils.InferenceResponse`."""

    __slots__ = ("_error", "_parameters", "_tensors")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """error: if given, the tensors do not matter.  parameters: str to bool, int or str.

        Raises TritonModelException for anything of another kind.
        """
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(
                    f"an output is a pb_utils.Tensor, not {type(tensor).__name__}"
                )
        if error is not None and not isinstance(error, TritonError):
            raise TritonModelException(f"an error is a TritonError, not {type(error).__name__}")
        self._tensors = () if error is not None else tuple(output_tensors)
        self._error = error
        self._parameters = checked_parameters(parameters) if parameters else {}

    @classmethod
    def received(
        cls,
        tensors: tuple[Tensor, ...],
        error: TritonError | None,
        parameters: dict[str, Any],
    ) -> "InferenceResponse":
        """One that came from another model, which needs no checks."""
        response = cls.__new__(cls)
        response._tensors = tensors
        response._error = error
        response._parameters = parameters
        return response

    def output_tensors(self) -> list[Tensor]:
        """None of them if there is an error."""
        return list(self._tensors)

    def has_error(self) -> bool:
        """Whether there is an error instead of tensors."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, if there is one."""
        return self._error

    def parameters(self) -> str:
        """All parameters as JSON text."""
        return json.dumps(self._parameters)

    # -- for the channel

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The outputs as they are."""
        return self._tensors

    def values(self) -> dict[str, Any]:
        """The parameters as they are."""
        return self._parameters


class ResponseIterator:
    """The responses to an inference on another model, as they come.

    It can be gone through again, which gives what came. Works with `for` and with `async for`.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._parts: Iterator[InferenceResponse] | None = None
        self._async_parts: AsyncIterator[InferenceResponse] | None = None
        self._seen: list[InferenceResponse] = []
        self._at = 0

    def __iter__(self) -> "ResponseIterator":
        self._at = 0
        return self

    def __next__(self) -> InferenceResponse:
        if self._at == len(self._seen):
            if self._parts is None:
                self._parts = self._call.parts()
            self._seen.append(next(self._parts))
        self._at += 1
        return self._seen[self._at - 1]

    def __aiter__(self) -> "ResponseIterator":
        self._at = 0
        return self

    async def __anext__(self) -> InferenceResponse:
        if self._at == len(self._seen):
            if self._async_parts is None:
                self._async_parts = self._call.async_parts()
            self._seen.append(await anext(self._async_parts))
        self._at += 1
        return self._seen[self._at - 1]

    def cancel(self) -> None:
        """Ask the other model to stop."""
        self._call.cancel()
