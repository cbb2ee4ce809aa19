"""What the server has for every call, for these too: queues, secrets, TLS, headers, traces."""

import contextlib
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests import certificates
from tests.e2e.openai_api.test_wire import send
from tests.e2e.process import ServerProcess, eventually, serving

QUEUE = """
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""

Serve = Callable[..., contextlib.AbstractContextManager[ServerProcess]]


@pytest.fixture
def serve(tmp_path: Path, text_repository: Path) -> Serve:
    """Serves `shouter` alone, its configuration with more text behind it."""

    def start(*flags: str, more: str = "") -> contextlib.AbstractContextManager[ServerProcess]:
        folder = shutil.copytree(text_repository / "shouter", tmp_path / "models" / "shouter")
        with (folder / "config.pbtxt").open("a") as config:
            config.write(more)
        (tmp_path / "log").mkdir()
        return serving(tmp_path / "log", tmp_path / "models", flags=flags)

    return start


@contextlib.contextmanager
def calling(server: ServerProcess, scheme: str = "http", **options: Any) -> Iterator[openai.OpenAI]:
    options = {"api_key": "abc", "max_retries": 0, "timeout": 30, **options}
    with openai.OpenAI(base_url=f"{scheme}://{server.http}/v1", **options) as client:
        yield client


def ask(client: openai.OpenAI, prompt: str = "a", **options: Any) -> str:
    answer = client.completions.create(model="shouter", prompt=prompt, **options)
    return str(answer.choices[0].text)


def test_restricted(serve: Serve) -> None:
    """The client's key is a header like others."""
    flag = "--http-restricted-api=inference:authorization=Bearer abc"
    with serve(flag) as server, calling(server) as client:
        assert ask(client) == "A"
        with pytest.raises(openai.PermissionDeniedError, match="restricted") as caught:
            ask(client, extra_headers={"Authorization": "Bearer x"})
        assert caught.value.type == "permission_error"
        assert server.get("/v1/models").status == 200


def test_a_full_queue(serve: Serve) -> None:
    with serve(more=QUEUE) as server, calling(server) as client, contextlib.ExitStack() as stack:

        def fill() -> bool:
            waiting = {"model": "shouter", "prompt": "wait"}
            stack.enter_context(send(server, "/v1/completions", waiting, "keep-alive"))
            return pending(server) == 1

        eventually(fill)
        with pytest.raises(openai.RateLimitError, match="the queue is full") as caught:
            ask(client)
        assert caught.value.type == "rate_limit_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stack.close()
        # The client comes again when it was told to.
        with calling(server, max_retries=5) as patient:
            assert ask(patient) == "A"


def pending(server: ServerProcess) -> int:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("nv_inference_pending_request_count{"):
                return int(float(line.rpartition(" ")[2]))
    return 0


def test_tls(serve: Serve, tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    pair = made.server
    flags = (
        "--http-use-ssl=true",
        f"--http-server-cert={pair.certificate}",
        f"--http-server-key={pair.key}",
    )
    with (
        serve(*flags) as server,
        httpx2.Client(verify=made.context()) as wire,
        calling(server, "https", http_client=wire) as client,
    ):
        assert ask(client, "a b") == "A B"
        chunks = client.completions.create(model="shouter", prompt="a", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "A"


def test_headers_that_are_forwarded(serve: Serve) -> None:
    with serve("--http-header-forward-pattern=^mine-") as server, calling(server) as client:
        said = ask(client, "parameters", extra_headers={"mine-a": "b", "other": "c"})
    assert json.loads(said) == {"max_tokens": 16, "mine-a": "b"}


def test_traces_and_statistics(serve: Serve, tmp_path: Path) -> None:
    flags = (f"--trace-config=triton,file={tmp_path}/t", "--trace-config=rate=1")
    with serve(*flags, "--trace-config=level=TIMESTAMPS") as server, calling(server) as client:
        ask(client, extra_headers={"x-request-id": "mine"})
        list(client.completions.create(model="shouter", prompt="b", stream=True))
        stats = server.get("/v2/models/shouter/stats").json()["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == 2
    (found,) = [path for path in tmp_path.glob("t*") if path.is_file()]
    names = [
        stamp["name"]
        for entry in json.loads(found.read_text())
        for stamp in entry.get("timestamps", ())
    ]
    for name in ("HTTP_RECV_START", "REQUEST_START", "HTTP_SEND_END"):
        assert names.count(name) == 2, names
