"""What ends a program ends an `execute` here, and not the thread or the event loop that runs it: in
a server's own process they are the server's."""

import asyncio
from typing import Any

import pytest

from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import ModelExited, ModelFailed, Runner
from naiad_backends.python.runtime.sender import Sink


class Nobody(Sink):
    def respond(self, index: int, response: InferenceResponse | None, final: bool) -> None:
        pass

    def cancelled(self, index: int) -> bool:
        return False

    def origin(self, index: int) -> object:
        return None


class Model:
    """Raises what it is told to, once."""

    def __init__(self, error: BaseException) -> None:
        self.errors = [error]

    def execute(self, requests: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return [InferenceResponse([])]


class AsyncModel(Model):
    async def execute(self, requests: Any) -> Any:
        await asyncio.sleep(0)
        return super().execute(requests)


def request() -> InferenceRequest:
    return InferenceRequest.received(Nobody(), 0, False, "", 0, 0, 0, ("y",), {}, ())


@pytest.mark.parametrize("kind", [Model, AsyncModel])
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), SystemExit("enough"), KeyboardInterrupt(), GeneratorExit(), MemoryError()],
    ids=repr,
)
def test_the_end_of_a_program_is_an_error(kind: type[Model], error: BaseException) -> None:
    said: list[str] = []
    runner = Runner(kind(error), False, said.append)
    with pytest.raises(ModelFailed, match=type(error).__name__) as caught:
        runner.run([request()])
    assert type(error).__name__ in said[0]
    if isinstance(error, SystemExit):
        assert isinstance(caught.value, ModelExited)
        assert caught.value.code == error.code
    (answer,) = runner.run([request()])
    assert isinstance(answer, InferenceResponse)
    runner.finalize()
