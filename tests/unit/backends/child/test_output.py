"""What is printed into a pipe is in the log, under the instance's name, and no flood of it."""

import asyncio
import logging
import os

import pytest

from naiad_backends.child.output import Output, Voice


async def printed(name: str, *chunks: bytes) -> None:
    """Print all that, close, and wait until it is read."""
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    Output(loop, name).read(reading)
    for chunk in chunks:
        await asyncio.to_thread(os.write, writing, chunk)
    os.close(writing)
    while True:
        try:
            os.fstat(reading)
        except OSError:
            return
        await asyncio.sleep(0.001)


async def test_lines_and_the_last_one_without_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await printed("m_0_0", b"a\n100 %s", b"\nb", b"c")
    records = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert records == [("m_0_0", "INFO", text) for text in ("a", "100 %s", "bc")]


async def test_a_flood_is_cut_and_the_model_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    lines = b"x\n" * 30_000
    with caplog.at_level(logging.INFO):
        await printed("m_0_0", lines, lines, lines)
        while not any("left out" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.01)
    texts = [record.getMessage() for record in caplog.records]
    written = texts.count("x")
    assert 1_000 <= written < 30_000
    left_out = sum(int(text.split()[0]) for text in texts if text != "x")
    assert 0 < left_out <= 90_000 - written


async def test_what_the_log_does_not_take_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    voice = Voice(asyncio.get_running_loop(), "m_0_0")
    with caplog.at_level(logging.INFO):
        for _ in range(5_000):
            voice.write(logging.DEBUG, "detail")
        voice.write(logging.INFO, "seen", "some.library")
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("m_0_0.some.library", "seen")]
