"""Clients that leave, stop reading or come in crowds, and engines that die: the server goes on."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tests.e2e.clients.streams import Stream
from tests.e2e.llm import events, generate, metric, post, text_input, write_as_vllm, write_smollm2
from tests.e2e.process import ServerProcess, endpoint, eventually, serving, starting

PROMPT = "Once upon a time"

BATCHING = """
model_transaction_policy { decoupled: true }
dynamic_batching { max_queue_delay_microseconds: 600000000 }
"""

LONG: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 1_000}


@pytest.fixture(scope="module")
def server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """`tight` runs one text, and two may wait; it is as for Triton's vLLM backend, with a batcher
    that is not used."""
    repository = tmp_path_factory.mktemp("repository")
    write_smollm2(repository, "smollm2", example_repository, max_logprobs="300")
    few = {"max_num_seqs": 1, "max_num_queued_reqs": 2}
    write_as_vllm(repository, "tight", example_repository, BATCHING, **few)
    with serving(tmp_path_factory.mktemp("server"), repository) as running:
        yield running


@contextmanager
def asking(
    server: ServerProcess, model: str = "smollm2", buffer: int = 0, **members: Any
) -> Iterator[socket.socket]:
    """A client that has asked for a long answer, and leaves at the end."""
    document = {"text_input": PROMPT, "stream": True, **LONG, **members}
    call = "generate_stream" if document["stream"] else "generate"
    body = json.dumps(document).encode()
    head = f"POST /v2/models/{model}/{call} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.socket() as client:
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(60)
        client.connect(endpoint(server.http))
        client.sendall(f"{head}\r\n".encode() + body)
        yield client


def at_rest(server: ServerProcess, model: str = "smollm2") -> bool:
    """Nothing runs, nothing waits, and no block is in use."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return not any(metric(server, name, model) for name in names)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_what_it_had(server: ServerProcess, streamed: bool) -> None:
    before = metric(server, "request_success_total", finished_reason="abort")
    with asking(server, stream=streamed):
        eventually(lambda: metric(server, "num_requests_running") == 1)
        assert metric(server, "kv_cache_usage_perc") > 0
    eventually(lambda: at_rest(server))
    assert metric(server, "request_success_total", finished_reason="abort") == before + 1


def test_a_choice_of_several_that_leaves(server: ServerProcess) -> None:
    with asking(server, n=4, temperature=1):
        eventually(lambda: metric(server, "num_requests_running") == 4)
    eventually(lambda: at_rest(server))


def test_a_batcher_is_not_used(server: ServerProcess) -> None:
    """The log says so."""
    assert "model 'tight': dynamic_batching has no effect" in server.log()
    assert generate(server, PROMPT, "tight", max_tokens=2)["text_output"]


def test_a_full_queue(server: ServerProcess) -> None:
    """What is too much is refused at once, and told when to come back."""
    with ExitStack() as crowd:
        for _ in range(3):
            crowd.enter_context(asking(server, "tight"))
        eventually(lambda: metric(server, "num_requests_running", "tight") == 1)
        eventually(lambda: metric(server, "num_requests_waiting", "tight") == 2)
        for call in ("generate", "generate_stream"):
            refused = post(server, "tight", call, {"text_input": PROMPT})
            assert refused.status == 503 and "queue is full" in refused.json()["error"]
            assert int(refused.headers["Retry-After"]) >= 1
    eventually(lambda: at_rest(server, "tight"))
    rejected = metric(server, "admission_rejections_total", "tight", reason="max_num_queued_reqs")
    assert rejected == 2
    assert generate(server, PROMPT, "tight", max_tokens=2)["text_output"]


def test_time_that_is_up(server: ServerProcess) -> None:
    """`timeout` is in microseconds, as in any request."""
    with asking(server, "tight"):
        eventually(lambda: metric(server, "num_requests_running", "tight") == 1)
        late = post(server, "tight", "generate", {"text_input": PROMPT, "timeout": 50_000})
        assert late.status == 503 and "time was up" in late.json()["error"]
    short = generate(server, PROMPT, **LONG, timeout=300_000, return_finish_reason=True)
    assert short["finish_reason"] == "abort" and short["text_output"]
    eventually(lambda: at_rest(server) and at_rest(server, "tight"))


def test_a_crowd(server: ServerProcess) -> None:
    """Each request of very many is answered or refused, and nothing is left behind."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers = Stream(client)
        given = [
            text_input("text_input", PROMPT),
            text_input("sampling_parameters", json.dumps({"max_tokens": 2})),
        ]
        for _ in range(2_000):
            answers.send("tight", given)
        outcomes = [answers.next() for _ in range(2_000)]
        client.stop_stream()
    refused = [error for _, error in outcomes if error is not None]
    assert 0 < len(refused) < 2_000
    assert all("queue is full" in str(error) for error in refused)
    eventually(lambda: at_rest(server, "tight"))


def test_a_client_that_stops_reading(server: ServerProcess) -> None:
    """The engine does not wait for it, and what it has missed comes in few large pieces. There is
    more to read than what sockets may hold."""
    scores: dict[str, Any] = {"logprobs": 300, "return_logprobs": True, "max_tokens": 200}
    with asking(server, buffer=4_096, **scores) as client:
        eventually(lambda: metric(server, "num_requests_running") == 1)
        eventually(lambda: at_rest(server), 60)
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += client.recv(1 << 20)
    body = b"".join(
        chunk for chunk in bytes(received).split(b"\r\n") if chunk.startswith(b"data: ")
    )
    documents = events(body)
    tokens = [token for event in documents for token in json.loads(event["logprobs"])]
    assert len(tokens) == 200
    assert len(documents) < 200


def engines(server: ServerProcess) -> set[int]:
    """The processes of engines."""
    task = Path(f"/proc/{server.process.pid}/task")
    children = [
        int(pid) for one in task.iterdir() for pid in (one / "children").read_text().split()
    ]
    return {
        pid
        for pid in children
        if b"naiad_backends.llm.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def ready(server: ServerProcess, model: str = "smollm2") -> bool:
    return server.get(f"/v2/models/{model}/ready").status == 200


def engine_of(server: ServerProcess, model: str) -> int:
    """The one that computes for a model: its own process is the only one that is busy."""
    spent = {pid: _ticks(pid) for pid in engines(server)}
    generate(server, PROMPT, model, ignore_eos=True, max_tokens=100)
    return max(spent, key=lambda pid: _ticks(pid) - spent[pid])


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_engine_that_is_killed(server: ServerProcess) -> None:
    """Its requests hear of it, the model is not ready for a while, and others go on."""
    victim = engine_of(server, "smollm2")
    with asking(server) as client, asking(server, stream=False) as other, asking(server, "tight"):
        eventually(lambda: metric(server, "num_requests_running") == 2)
        eventually(lambda: metric(server, "num_requests_running", "tight") == 1)
        assert client.recv(1 << 16)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: not ready(server))
        received = b""
        while b"SIGKILL" not in received:
            received += client.recv(1 << 16)
        assert other.recv(1 << 16).startswith(b"HTTP/1.1 503")
        assert metric(server, "num_requests_running", "tight") == 1
    eventually(lambda: ready(server), 60)
    assert generate(server, PROMPT, max_tokens=2)["text_output"]
    eventually(lambda: at_rest(server))
    assert victim not in engines(server) and len(engines(server)) == 2


def test_a_crowd_and_an_engine_that_is_killed(server: ServerProcess) -> None:
    """Requests come before, while and after it is away, which is until the new one may go on. Each
    has one outcome: an answer, or a clear refusal."""
    seconds = re.findall(r"'tight_0_0' is loaded in ([\d.]+) s", server.log())
    if float(seconds[-1]) > 9:
        pytest.skip("requests do not wait for an engine that takes 10 s to load")
    victim = engine_of(server, "tight")
    others = engines(server)
    rejections = {"reason": "max_num_queued_reqs"}
    given = [
        text_input("text_input", PROMPT),
        text_input("sampling_parameters", json.dumps({"max_tokens": 2})),
    ]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client, asking(server, "tight"):
        eventually(lambda: metric(server, "num_requests_running", "tight") == 1)
        answers = Stream(client)
        for _ in range(2):
            answers.send("tight", given)
        eventually(lambda: metric(server, "num_requests_waiting", "tight") == 2)
        os.kill(victim, signal.SIGKILL)
        lost = [answers.next() for _ in range(2)]
        (fresh,) = eventually(lambda: engines(server) - others)
        os.kill(fresh, signal.SIGSTOP)
        before = metric(server, "admission_rejections_total", "tight", **rejections)
        for _ in range(300):
            answers.send("tight", given)
        full = [answers.next() for _ in range(297)]
        refused = post(server, "tight", "generate", {"text_input": PROMPT})
        os.kill(fresh, signal.SIGCONT)
        answered = [answers.next() for _ in range(3)]
        client.stop_stream()
    assert all("SIGKILL" in str(error) for _, error in lost)
    assert all("queue is full: 3 requests wait already" in str(error) for _, error in full)
    assert refused.status == 503 and "queue is full" in refused.json()["error"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert all(error is None for _, error in answered)
    assert metric(server, "admission_rejections_total", "tight", **rejections) == before + 298
    eventually(lambda: at_rest(server, "tight"))


def test_engines_end_with_the_server(example_repository: Path, tmp_path: Path) -> None:
    """Even with one that is killed."""
    repository = tmp_path / "repository"
    write_smollm2(repository, "smollm2", example_repository)
    with starting(tmp_path, repository) as server:
        server.wait_ready()
        (engine,) = engines(server)
        with asking(server) as client:
            assert client.recv(1 << 16)
            server.kill()
            eventually(lambda: _is_gone(engine))


def _is_gone(pid: int) -> bool:
    """Who has ended and was inherited by somebody who does not look after it is gone, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
