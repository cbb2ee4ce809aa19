"""Messages between the server and an engine, cut anywhere by the stream."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import Abort, Add, Pool, ResetPrefixCache, Start, ToEngine
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=300)
MESSAGES = st.one_of(
    st.builds(
        Add, st.integers(0, 2**63), TOKENS, st.builds(Sampling, seed=st.integers(0, 2**64 - 1))
    ),
    st.builds(Pool, st.integers(0, 2**63), TOKENS),
    st.builds(Abort, TOKENS),
    st.just(ResetPrefixCache()),
)


@given(st.lists(MESSAGES, max_size=6), st.integers(1, 4000))
def test_messages_arrive_as_they_were_sent(messages: list[ToEngine], cut: int) -> None:
    sent = b"".join(map(frame, messages))
    frames, decoder = Frames(), msgspec.msgpack.Decoder(ToEngine)
    arrived: list[ToEngine] = []

    for start in range(0, len(sent), cut):
        for message in frames.feed(sent[start : start + cut]):
            arrived.append(decoder.decode(message))

    assert arrived == messages


def test_what_to_load_arrives_with_its_options() -> None:
    start = Start("models/m", Options(block_size=32, dtype="float32"), "cuda:1")

    (message,) = (bytes(m) for m in Frames().feed(frame(start)))

    assert msgspec.msgpack.decode(message, type=Start) == start


def test_what_is_no_message_is_not_waited_for() -> None:
    with pytest.raises(ValueError, match="no message"):
        list(Frames().feed(b"a line that somebody printed\n"))
