"""The process of an engine, with models of random weights."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import Add, Failed, FromEngine, Output, Outputs, Ready, Start
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
OPTIONS = Options(load_format="dummy", cpu_kernels="torch", threads=1)

Begin = Callable[[Start], tuple[socket.socket, subprocess.Popen[bytes]]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts engines, and sees them end when their sockets do."""
    started: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def start(message: Start) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        here, there = socket.socketpair()
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", "naiad_backends.llm.engine.worker", str(there.fileno())],
                pass_fds=(there.fileno(),),
            )
        started.append((here, process))
        here.sendall(frame(message))
        return here, process

    yield start
    for here, process in started:
        here.close()
        assert process.wait(60) == 0


def hear(connection: socket.socket) -> Iterator[FromEngine]:
    """All messages until the end."""
    frames = Frames()
    while data := connection.recv(65536):
        for message in frames.feed(data):
            yield msgspec.msgpack.decode(message, type=FromEngine)


def test_an_engine_loads_answers_and_ends(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    here, _ = begin(Start(str(tmp_path), OPTIONS))
    messages = hear(here)

    ready = next(messages)
    here.sendall(frame(Add(3, [1, 2, 3], Sampling(temperature=0, max_tokens=5))))
    outputs: list[Output] = []
    while not (outputs and outputs[-1].finish):
        message = next(messages)
        assert isinstance(message, Outputs)
        outputs += message.outputs

    assert isinstance(ready, Ready)
    assert (ready.max_model_len, ready.vocab_size) == (64, 97)
    assert [o.finish for o in outputs] == ["", "", "", "", "length"]
    assert {o.number for o in outputs} == {3}


def test_an_engine_that_cannot_load_says_why_and_ends(begin: Begin, tmp_path: Path) -> None:
    here, process = begin(Start(str(tmp_path / "nowhere"), OPTIONS))

    (message,) = hear(here)

    assert isinstance(message, Failed)
    assert message.code == "NOT_FOUND"
    assert "nowhere" in message.message
    assert process.wait(60) == 0
