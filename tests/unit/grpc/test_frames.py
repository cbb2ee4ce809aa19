"""Frames as hyperframe, the frame layer of another implementation, reads them."""

import pytest
from hyperframe.frame import (
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from naiad.grpc import frames
from naiad.grpc.frames import Reason, Setting


def parse(data: bytes) -> Frame:
    frame, length = Frame.parse_frame_header(memoryview(data[:9]))
    assert length == len(data) - 9
    frame.parse_body(memoryview(data[9:]))
    return frame


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, frames.LARGEST_MAX_FRAME])
def test_headers_of_frames(length: int) -> None:
    frame, size = Frame.parse_frame_header(
        memoryview(frames.header(length, frames.DATA, frames.END_STREAM, frames.MAX_STREAM))
    )
    assert (size, frame.stream_id, set(frame.flags)) == (length, 2**31 - 1, {"END_STREAM"})


def test_a_whole_frame() -> None:
    frame = parse(frames.frame(frames.HEADERS, frames.END_HEADERS, 5, b"block"))
    assert isinstance(frame, HeadersFrame)
    assert (frame.stream_id, set(frame.flags), frame.data) == (5, {"END_HEADERS"}, b"block")


def test_settings() -> None:
    frame = parse(
        frames.settings({Setting.INITIAL_WINDOW_SIZE: 7, Setting.MAX_FRAME_SIZE: 2**24 - 1})
    )
    assert isinstance(frame, SettingsFrame)
    assert frame.settings == {4: 7, 5: 2**24 - 1}


def test_window_updates_and_resets() -> None:
    update = parse(frames.window_update(3, frames.MAX_WINDOW))
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (3, 2**31 - 1)
    reset = parse(frames.rst_stream(9, Reason.REFUSED_STREAM))
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (9, 7)


def test_goaway() -> None:
    frame = parse(frames.goaway(11, Reason.ENHANCE_YOUR_CALM, "why"))
    assert isinstance(frame, GoAwayFrame)
    assert (frame.last_stream_id, frame.error_code, frame.additional_data) == (11, 11, b"why")
