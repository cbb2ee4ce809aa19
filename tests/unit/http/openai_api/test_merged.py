"""Several streams as one: order, ends, errors, silence, and what closing does."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from naiad.core.responses import Part
from naiad.http.openai.merged import Merged
from naiad_backends.api import Response
from naiad_backends.errors import NaiadError, internal

ENDLESS_S = 1e6


class Source:
    """A stream that the test feeds. closed: its reader has left."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Response | NaiadError | None] = asyncio.Queue()
        self.closed = False

    async def parts(self) -> AsyncGenerator[Part, None]:
        try:
            while (said := await self.queue.get()) is not None:
                if isinstance(said, NaiadError):
                    raise said
                yield Part(said, False)
            yield Part(None, True)
        finally:
            self.closed = True


async def test_responses_come_with_the_number_of_their_stream() -> None:
    sources = [Source(), Source()]
    merged = Merged((source.parts() for source in sources), ENDLESS_S)
    first, second = Response(), Response()
    sources[1].queue.put_nowait(first)
    assert await merged.take() == [(1, first)]
    sources[0].queue.put_nowait(second)
    assert await merged.take() == [(0, second)]
    for source in sources:
        source.queue.put_nowait(None)
    assert await merged.take() is None
    await merged.close()


async def test_so_many_begin_when_others_have_ended() -> None:
    begun: list[int] = []

    async def parts(number: int, source: Source) -> AsyncGenerator[Part, None]:
        begun.append(number)
        async for part in source.parts():
            yield part

    sources = [Source() for _ in range(4)]
    streams = (parts(number, source) for number, source in enumerate(sources))
    merged = Merged(streams, ENDLESS_S, at_once=2)
    said = Response()
    sources[1].queue.put_nowait(said)
    assert await merged.take() == [(1, said)] and begun == [0, 1]
    sources[1].queue.put_nowait(None)
    sources[2].queue.put_nowait(said)
    assert await merged.take() == [(2, said)] and begun == [0, 1, 2]
    await merged.close()
    assert [source.closed for source in sources] == [True, True, True, False]
    assert begun == [0, 1, 2]


async def test_what_came_meanwhile_comes_together() -> None:
    source = Source()
    merged = Merged([source.parts()], ENDLESS_S)
    said = [Response(), Response()]
    for each in (*said, None):
        source.queue.put_nowait(each)
    assert await merged.take() == [(0, said[0]), (0, said[1])]
    assert await merged.take() is None
    await merged.close()


async def test_an_error_comes_behind_what_was_before_it() -> None:
    failing, other = Source(), Source()
    merged = Merged([failing.parts(), other.parts()], ENDLESS_S)
    failing.queue.put_nowait(Response())
    failing.queue.put_nowait(internal("broken"))
    assert await merged.take() == [(0, Response())]
    with pytest.raises(NaiadError, match="broken"):
        await merged.take()
    await merged.close()
    assert other.closed


async def test_silence_is_told_again_and_again_until_something_comes() -> None:
    source = Source()
    merged = Merged([source.parts()], 0.001)
    assert [await merged.take(), await merged.take()] == [[], []]
    source.queue.put_nowait(Response())
    while (taken := await merged.take()) == []:
        pass
    assert taken == [(0, Response())]
    await merged.close()
    assert source.closed


async def test_a_reader_that_is_cancelled_may_close() -> None:
    source = Source()
    merged = Merged([source.parts()], ENDLESS_S)
    reader = asyncio.ensure_future(merged.take())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await merged.close()
    assert source.closed
