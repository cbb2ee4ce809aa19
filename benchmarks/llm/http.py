"""`python -m benchmarks.llm.http`: chat servers under equal load, through one client, in turns.

The client asks for streams of OpenAI's /v1/completions, with prompts of random tokens. It runs on
the servers' cores, so it does as little as it can: it takes the time of what arrives, and looks
only at how an answer begins and ends.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import uvloop

from benchmarks import options
from benchmarks.cpu import spent
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.http_client import post_bytes
from benchmarks.llm.drivers.protocol import VOCABULARY
from benchmarks.llm.models import Models
from benchmarks.llm.peers import Peers

NAMES = ("naiad", "llama.cpp", "vllm")
_PATIENCE_SECONDS = 600

_END_BYTES = 4096
"""That hold the last chunk, with all that a server may tell in it."""

SHARED = "shared prefix"
"""16 requests at once whose prompts begin with the same 512 tokens; 32 own, 32 new ones."""


@dataclass(frozen=True)
class Load:
    """clients: each sends anew when it was answered, `requests` times.  shared: tokens with which
    all prompts begin.  prompt: their own tokens.  output: of each answer."""

    clients: int
    requests: int = 4
    shared: int = 0
    prompt: int = 128
    output: int = 64

    @property
    def name(self) -> str:
        """For people to read."""
        return f"{self.clients} clients" if not self.shared else SHARED


@dataclass(frozen=True)
class Figures:
    """rate: new tokens per second, of all.  first: median seconds to the first token.  token: mean
    seconds between two tokens of a request.  server, client: CPU seconds for each new token, of all
    processes of the server, and of the client that measures."""

    rate: float
    first: float
    token: float
    server: float
    client: float


class Server(AbstractContextManager["Server"]):
    """A server's process, ready."""

    def __init__(self, name: str, command: Sequence[str], port: int, model: str) -> None:
        """Raises BenchmarkError if it does not come up in two minutes."""
        self.name = name
        self.model = model
        self.port = port
        self._folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
        log = Path(self._folder.name) / "log"
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"}
        begun = time.perf_counter()
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        while not self._answers():
            if self._process.poll() is not None or time.perf_counter() - begun > 180:
                text = log.read_text()
                self.__exit__()
                raise BenchmarkError(f"{name} did not start:\n{text}")
            time.sleep(0.05)
        self.start = time.perf_counter() - begun
        """Seconds from the start of the process to the first answer."""

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def _answers(self) -> bool:
        body = {"model": self.model, "prompt": [2000, 3000], "max_tokens": 1}
        head = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class _Stream(asyncio.Protocol):
    """One request on a connection of its own, which the server closes behind its answer.

    first, last: when its first and its last tokens came; 0 for never.
    """

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.ended = asyncio.get_running_loop().create_future()
        self._head = b""
        self._end = b""

    def data_received(self, data: bytes) -> None:
        self._head = self._head or data
        self._end = (self._end + data)[-_END_BYTES:]
        if b"data: {" in data:
            self.last = time.perf_counter()
            self.first = self.first or self.last

    def connection_lost(self, error: Exception | None) -> None:
        if b" 200 " not in self._head[:20] or b'"length"' not in self._end:
            said = (self._head + self._end).decode(errors="replace")
            self.ended.set_exception(BenchmarkError(f"not the answer that was asked for: {said}"))
        else:
            self.ended.set_result(None)


async def drive(server: Server, load: Load) -> Figures:
    """Run a load once."""
    loop = asyncio.get_running_loop()
    firsts: list[float] = []
    gaps: list[float] = []
    common = random.choices(VOCABULARY, k=load.shared)

    async def client() -> None:
        for _ in range(load.requests):
            prompt = common + random.choices(VOCABULARY, k=load.prompt)
            request = _request(server.model, prompt, load.output)
            begun = time.perf_counter()
            transport, stream = await loop.create_connection(_Stream, "127.0.0.1", server.port)
            transport.write(request)
            await stream.ended
            firsts.append(stream.first - begun)
            gaps.append((stream.last - stream.first) / (load.output - 1))

    used, own = spent(server.pid), time.process_time()
    begun = time.perf_counter()
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await asyncio.gather(*(client() for _ in range(load.clients)))
    seconds = time.perf_counter() - begun
    used, own = spent(server.pid) - used, time.process_time() - own
    tokens = load.clients * load.requests * load.output
    return Figures(
        rate=tokens / seconds,
        first=median(firsts),
        token=sum(gaps) / len(gaps),
        server=used.family / tokens,
        client=own / tokens,
    )


def _request(model: str, prompt: Sequence[int], output: int) -> bytes:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    # A connection each: not all servers keep theirs open behind a stream.
    headers = {"Content-Type": "application/json", "Connection": "close"}
    return post_bytes("/v1/completions", headers, json.dumps(body).encode())


Start = tuple[list[str], str]
"""A command, and by which name its server knows the model."""


def commands(
    models: Models, peers: Peers, threads: int, port: int, vllm_eager: bool
) -> dict[str, Callable[[], Start]]:
    """What starts each server, by name; made only for those that are asked for."""
    folder = models.q4_1().parents[2]
    return {
        "naiad": lambda: (
            [
                *(sys.executable, "-m", "naiad", "serve", f"--model-repository={folder}"),
                *(f"--http-port={port}", "--grpc-port=0", "--metrics-port=0"),
            ],
            "smollm2",
        ),
        "llama.cpp": lambda: (
            [
                *(str(peers.llamacpp("llama-server")), "-m", str(models.q4_0(peers))),
                *("--port", str(port), "-t", str(threads), "-tb", str(threads)),
                *("-np", "32", "-c", str(32 * 768), "--kv-unified", "--no-webui"),
            ],
            "",
        ),
        "vllm": lambda: (
            [
                *(str(peers.python("vllm")), "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(models.folder()), "--served-model-name", "smollm2"),
                *("--port", str(port), "--max-model-len", "4096", "--dtype", "bfloat16"),
                *(["--enforce-eager"] * vllm_eager),
            ],
            "smollm2",
        ),
    }


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Results = Mapping[Load, Mapping[str, Sequence[Figures]]]


def table(found: Results, names: Sequence[str]) -> str:
    """Markdown: medians over the rounds; ratios of the rates within each round."""
    head = ["load", "server", "tokens/s", "first token ms", "per token ms"]
    head += ["CPU ms per token", "of the client", f"{names[0]}'s rate to it"]
    rows = [head, ["---"] * len(head)]
    for load, servers in found.items():
        for name in names:
            rates = [one.rate for one in servers[name]]
            ours = [one.rate for one in servers[names[0]]]
            ratio = median(a / b for a, b in zip(ours, rates, strict=True))
            rows.append(
                [
                    *(load.name, name, f"{median(rates):,.0f}"),
                    f"{1e3 * median(one.first for one in servers[name]):,.0f}",
                    f"{1e3 * median(one.token for one in servers[name]):,.1f}",
                    f"{1e3 * median(one.server for one in servers[name]):,.2f}",
                    f"{1e3 * median(one.client for one in servers[name]):,.3f}",
                    f"{ratio:.2f}",
                ]
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@click.command()
@click.option("--servers", type=options.CommaList(NAMES), default=",".join(NAMES))
@click.option("--clients", type=options.CommaList(), default="1,8,32", show_default=True)
@click.option("--shared/--no-shared", default=True, help=f"Also: {SHARED}.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--vllm-eager", is_flag=True, help="Without its compilation, which may take long.")
@click.option(
    "--peers-home",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "naiad-peers",
    help="Where the peers' environments and programs are kept.",
)
def main(
    servers: list[str],
    clients: list[str],
    shared: bool,
    rounds: int,
    threads: int,
    vllm_eager: bool,
    peers_home: Path,
) -> None:
    """All servers are up, one is loaded at a time, and they take turns."""
    models, peers = Models(peers_home), Peers(peers_home)
    loads = [Load(int(count)) for count in clients]
    if shared:
        loads.append(Load(16, 1, shared=512, prompt=32, output=32))
    found: dict[Load, dict[str, list[Figures]]] = {
        load: {name: [] for name in servers} for load in loads
    }
    with ExitStack() as stack:
        running = []
        for name in servers:
            port = _port()
            command, model = commands(models, peers, threads, port, vllm_eager)[name]()
            running.append(stack.enter_context(Server(name, command, port, model)))
        for number in range(rounds):
            for load in loads:
                for server in running if number % 2 == 0 else reversed(running):
                    found[load][server.name].append(uvloop.run(drive(server, load)))
        starts = {server.name: f"{server.start:.1f} s" for server in running}
    for name, value in {**facts("benchmarks.llm.http"), "start to first token": starts}.items():
        print(f"- {name}: {value}")
    print(f"\n{table(found, servers)}")


if __name__ == "__main__":
    main()
