"""A real HttpServer in the test's own event loop, and a client that sends any bytes it is told to.

Knows no v2 documents beyond the bodies that it builds for the model `echo`.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from naiad.core import loading
from naiad.core.dataplane import DataPlane
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.model import ServedModel
from naiad.core.registry import Registry
from naiad.core.restriction import Restriction
from naiad.http.server import HttpServer
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder, Repositories
from naiad.tls import Tls
from naiad_backends.api import (
    Backend,
    Completion,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Placement,
    Request,
    Response,
)
from naiad_backends.registry import BackendRegistry

MAX_INPUT = 2**20
"""`--http-max-input-size` of the servers here."""

MODELS: Mapping[str, str] = {
    "echo": "max_batch_size: 64 {} TYPE_FP32 [ -1 ]",
    "fixed": "{} TYPE_INT32 [ 2, 3 ]",
    "text": "max_batch_size: 4 {} TYPE_STRING [ 1 ]",
    "half": "{} TYPE_FP16 [ -1 ]",
    "plane": "{} TYPE_UINT8 [ -1, -1 ]",
    "any": "{} TYPE_FP64 [ -1, 1 ]",
}
"""Identity models, `INPUT0` to `OUTPUT0`: batching, datatype and dims."""

TURNS = 50


def write_models(repository: Path) -> Path:
    """Write MODELS, the model `pair` with two inputs and the unloaded model `idle`."""
    for name, text in MODELS.items():
        head, _, tensor = text.rpartition("{}")
        datatype, _, dims = tensor.strip().partition(" ")
        ends = [(0, datatype, dims)]
        _write(repository, name, head, ends)
    _write(repository, "pair", "", [(0, "TYPE_FP32", "[ -1 ]"), (1, "TYPE_BOOL", "[ -1 ]")])
    _write(repository, "idle", "", [(0, "TYPE_FP32", "[ -1 ]")])
    return repository


def _write(repository: Path, name: str, head: str, tensors: Sequence[tuple[int, str, str]]) -> None:
    (repository / name / "1").mkdir(parents=True)
    lines = ['backend: "identity"', head]
    for kind in ("input", "output"):
        for number, datatype, dims in tensors:
            tensor = f'name: "{kind.upper()}{number}" data_type: {datatype} dims: {dims}'
            lines.append(f"{kind} [ {{ {tensor} }} ]")
    (repository / name / "config.pbtxt").write_text("\n".join(lines), encoding="utf-8")


class Gate(Backend):
    """A backend whose models say when they begin and answer when they may.

    began: how many executions have begun.  opened: set it to let all of them end.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.began = threading.Semaphore(0)
        self.opened = threading.Event()

    def complete(self, spec: ModelSpec) -> Completion | None:
        """Nothing to tell."""
        return None

    def load(self, spec: ModelSpec) -> Model:
        """A model behind this gate."""
        return _GateModel(self)

    async def wait(self) -> None:
        """Until one more execution has begun."""
        await asyncio.to_thread(self.began.acquire)


class _GateModel(Model):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def instance(self, placement: Placement) -> Instance:
        return _GateInstance(self._gate)

    def close(self) -> None:
        pass


class _GateInstance(Instance):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def execute(self, requests: Sequence[Request]) -> Execution:
        self._gate.began.release()
        self._gate.opened.wait()
        return Execution([Response([r.inputs["INPUT0"].renamed("OUTPUT0")]) for r in requests])

    def close(self) -> None:
        pass


@dataclass
class Reply:
    """One HTTP answer. headers: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Wire:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces one by one, so that the server may see each of them alone."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            if len(pieces) > 1:
                await turn(2)

    async def reply(self, method: str = "POST") -> Reply:
        """Read one answer to its end; interim answers are passed over."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        status = int(first.split(" ")[1])
        if status == 100:
            return await self.reply(method)
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), "a header is given twice"
        size = 0 if method == "HEAD" else int(headers["content-length"])
        return Reply(status, headers, await self._reader.readexactly(size))

    async def interim(self) -> int:
        """Read a head without a body; its status."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ")[1])

    async def ask(self, *pieces: bytes) -> Reply:
        """Send a request and read its answer."""
        await self.send(*pieces)
        return await self.reply(pieces[0].split(b" ", 1)[0].decode("latin-1"))

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        try:
            return await self._reader.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Leave at once."""
        self._writer.transport.abort()


@dataclass
class Live:
    """A listening server and what it stands on."""

    server: HttpServer
    dataplane: DataPlane
    registry: Registry
    models: Path
    port: int
    wires: list[Wire]
    context: ssl.SSLContext | None = None

    async def connect(self, receive_buffer: int = 0) -> Wire:
        """A connection; closed at the latest with the server."""
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        name = None if self.context is None else "127.0.0.1"
        streams = await asyncio.open_connection(
            sock=sock, limit=2**20, ssl=self.context, server_hostname=name
        )
        wire = Wire(*streams)
        self.wires.append(wire)
        return wire

    async def ask(self, *pieces: bytes) -> Reply:
        """One request on a connection of its own."""
        return await (await self.connect()).ask(*pieces)

    def add_gate(self, gate: Gate) -> ServedModel:
        """Put the model `gate` into service; like `echo`, but it answers when it may."""
        folder = ModelFolder.at(self.models / "echo")
        config = ModelConfig.read(folder).with_defaults((), 1)
        spec = config.spec(1, folder)
        served = ServedModel(loading.load(gate, config, spec))
        served.name = "gate"
        self.registry.publish(served)
        return served


@contextlib.asynccontextmanager
async def loaded(models: Path) -> AsyncIterator[tuple[Registry, DataPlane]]:
    """A data plane in mode explicit with all models but `idle` loaded."""
    registry = Registry()
    options = LoadOptions(control_mode=ControlMode.EXPLICIT)
    lifecycle = Lifecycle(Repositories([models]), BackendRegistry(), registry, options)
    dataplane = DataPlane(registry, lifecycle, "naiad", "0", strict=False)
    assert await lifecycle.load_all([*MODELS, "pair"]) == {}
    dataplane.started = True
    try:
        yield registry, dataplane
    finally:
        await lifecycle.close()


@contextlib.asynccontextmanager
async def serving(
    models: Path,
    restriction: Restriction | None = None,
    tls: Tls | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Live]:
    """A server on a free port for such a data plane. context: with which clients speak TLS."""
    async with loaded(models) as (registry, dataplane):
        server = HttpServer(
            dataplane, "127.0.0.1", 0, False, MAX_INPUT, restriction=restriction, tls=tls
        )
        live = Live(server, dataplane, registry, models, await server.start(), [], context)
        try:
            yield live
        finally:
            for wire in live.wires:
                wire.close()
            await server.stop(5)


async def turn(times: int = TURNS) -> None:
    """Let the event loop go round, so that what can happen by now has happened."""
    for _ in range(times):
        await asyncio.sleep(0)


def post(path: str, body: bytes, *lines: str) -> bytes:
    """An ordinary POST."""
    extra = "".join(f"{line}\r\n" for line in lines)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode("latin-1") + body


def get(path: str, *lines: str) -> bytes:
    """An ordinary GET."""
    extra = "".join(f"{line}\r\n" for line in lines)
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode("latin-1")


def chunked(path: str, *chunks: bytes) -> bytes:
    """A POST whose body comes in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + body + b"0\r\n\r\n"


def json_body(values: Sequence[float], **more: Any) -> bytes:
    """A JSON body for `echo`, one batch element."""
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return json.dumps({"inputs": [tensor], **more}).encode()


def binary_request(size: int, model: str = "echo", *lines: str) -> tuple[bytes, bytes]:
    """A request with a binary input of `size` bytes that wants a binary output, and that input."""
    data = np.arange(size // 4, dtype=np.float32).tobytes()
    tensor = {
        "name": "INPUT0",
        "datatype": "FP32",
        "shape": [1, size // 4],
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return post(f"/v2/models/{model}/infer", head + data, length, *lines), data
