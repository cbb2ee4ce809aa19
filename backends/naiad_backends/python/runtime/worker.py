"""A worker process: one instance of a model, from `initialize` to `finalize`.

The main thread takes batches from the server and runs them; a second one reads what else the server
says. The process ends when the server asks for it, and at once when the server is gone.
"""

import contextlib
import faulthandler
import fcntl
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from naiad_backends.python.runtime import link as links
from naiad_backends.python.runtime.blocks import Mapped, Pool, announcer
from naiad_backends.python.runtime.errors import ErrorCode, at_length, in_short
from naiad_backends.python.runtime.frames import Kind, Port
from naiad_backends.python.runtime.heads import LEFT, Outputs, error_head, read_request
from naiad_backends.python.runtime.link import Plain
from naiad_backends.python.runtime.logger import install, uninstall
from naiad_backends.python.runtime.module import load_alone
from naiad_backends.python.runtime.parcel import Packer, Unpacker, pack
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import Left, ModelExited, ModelFailed, Runner
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.runtime.side import Memory, Side

# Members of an enumeration are slow to reach.
_RESULT, _PART = int(Kind.RESULT), int(Kind.PART)

_NO_CALLS = "other models can be called in execute, and in threads that it has begun, not in {}"


class _Batch(Sink):
    """The requests of one message, until all of them are answered."""

    def __init__(self, worker: "Worker", number: int, wanted: Sequence[Sequence[str]]) -> None:
        """wanted: the outputs that each request asks for."""
        self._worker = worker
        self._number = number
        self.wanted = wanted
        self.gone: set[int] = set()

    def respond(self, index: int, response: InferenceResponse | None, final: bool) -> None:
        self._worker.part(self._number, index, response, final, self.wanted[index])

    def cancelled(self, index: int) -> bool:
        return index in self.gone

    def origin(self, index: int) -> object:
        return self._number, index


class Worker:
    """The instance and its two channels."""

    def __init__(self, work: socket.socket, side: socket.socket, blocks: socket.socket) -> None:
        self._work = Port(work)
        self._announcing = blocks
        self._memory = Memory(Pool(announcer(blocks)), Mapped(blocks))
        self._side = Side(Port(side), self._work, self._memory)
        self._side.batch = self._batch_of_caller
        self._batches: dict[int, _Batch] = {}
        self._early: set[tuple[int, int]] = set()
        """Requests that were cancelled before their batch came, because that is the other way."""
        self._last = 0
        self._cancelling = threading.Lock()
        self._executing = 0
        self._main = threading.get_ident()
        self._runner: Runner

    def leave(self) -> None:
        """In a process that the model has forked off: it must not speak for this one, and its
        copies of the sockets must not hide that this one has ended."""
        links.connect(None)
        uninstall()
        self._work.leave()
        self._side.leave()
        self._announcing.close()

    # -- the beginning and the end

    def run(self) -> None:
        """Serve until the server says stop."""
        self._work.write(Kind.HELLO, [os.getpid(), platform.python_version()])
        _, head, _, _ = self._work.read()
        links.connect(self._side)
        install(self._side)
        reader = threading.Thread(target=self._side.serve, args=(self._told,), daemon=True)
        reader.name = "server"
        reader.start()
        try:
            if head["complete"]:
                self._work.write(Kind.READY, [self._complete(head)])
                return
            self._start(head)
        except Exception as error:
            text = str(error) if isinstance(error, ModelFailed) else in_short(error)
            if not isinstance(error, ModelFailed):
                self._complain(at_length(error))
            self._work.write(Kind.FAILED, [text.encode("utf-8", "replace").decode()])
            sys.stderr.flush()
            return
        self._loop()

    def _start(self, head: dict[str, Any]) -> None:
        model = load_alone(Path(head["file"]), Path(head["version"]))()
        if not callable(getattr(model, "execute", None)):
            raise ModelFailed("TritonPythonModel has no method execute")
        self._decoupled = head["decoupled"]
        hidden = head["hidden"]
        self._names = tuple(name for name in head["outputs"] if name not in hidden)
        self._outputs = Outputs(head["outputs"], self._warn, head["strict_outputs"])
        self._runner = runner = Runner(model, self._decoupled, self._complain)
        self._side.forbidden = _NO_CALLS.format("initialize")
        runner.initialize(head["args"])
        self._side.forbidden = ""
        self._work.write(Kind.READY, [runner.has_opinion])

    def _complete(self, head: dict[str, Any]) -> Any:
        from naiad_backends.python.runtime.completing import ModelConfig

        self._side.forbidden = _NO_CALLS.format("auto_complete_config")
        found = load_alone(Path(head["file"]), Path(head["version"]))
        method = getattr(found, "auto_complete_config", None)
        config = ModelConfig(head["config"])
        if method is None:
            return config.as_dict()
        completed = method(config)
        if not isinstance(completed, ModelConfig):
            raise TypeError(
                f"auto_complete_config must return the ModelConfig, not {type(completed).__name__}"
            )
        return completed.as_dict()

    def _loop(self) -> None:
        while True:
            if not self._work.waiting:
                self._side.release()
            kind, head, data, block = self._work.read()
            if kind == Kind.EXECUTE:
                self._run(head, data, block)
            elif kind == Kind.STOP:
                break
            del head, data
        self._side.forbidden = _NO_CALLS.format("finalize")
        self._runner.finalize()

    # -- batches

    def _run(self, batches: Any, data: bytearray, block: int) -> None:
        try:
            unpacker = self._memory.unpacker(data, block)
        except OSError as error:
            # Such as by a limit that the model has set for itself.
            text = f"the worker has no memory for the requests: {error.strerror}"
            now = time.perf_counter_ns()
            for number, _ in batches:
                self._work.write(Kind.RESULT, [number, now, now, 0, text, []])
            return
        for number, heads in batches:
            self._execute(number, heads, unpacker)

    def _execute(self, number: int, heads: Any, unpacker: Unpacker) -> None:
        decoupled = self._decoupled
        start = time.perf_counter_ns()
        batch = _Batch(self, number, ())
        requests = [
            read_request(one, unpacker, batch, index, decoupled, self._names)
            for index, one in enumerate(heads)
        ]
        batch.wanted = wanted = [request.wanted for request in requests]
        with self._cancelling:
            self._last = number
            self._batches[number] = batch
            if self._early:
                batch.gone = {index for one, index in self._early if one == number}
                self._early = {early for early in self._early if early[0] > number}
        self._executing = number
        begin = time.perf_counter_ns()
        try:
            outcomes = self._runner.run(requests)
        except ModelExited as error:
            # Not by the way of an exception: that would wait for the model's threads.
            _exit(error.code)
        except ModelFailed as error:
            self._work.write(Kind.RESULT, [number, start, begin, 0, str(error), []])
            self._batches.pop(number, None)
            return
        finally:
            self._executing = 0
        end = time.perf_counter_ns()
        packer = Packer(self._memory.mapped)
        finished = True
        results = []
        for outcome, names in zip(outcomes, wanted, strict=True):
            if isinstance(outcome, Left):
                results.append(LEFT[outcome])
                finished = finished and outcome is Left.AGAIN
            else:
                results.append(self._outputs.pack(outcome, names, packer))
        if finished:
            del self._batches[number]
        answer, own = self._pack(packer, results)
        del outcomes, packer, outcome
        released = self._memory.released()
        result = f"[{number},{start},{begin},{end},[{','.join(results)}],{released}]"
        self._work.write_text(_RESULT, result, answer, own)

    def part(
        self,
        number: int,
        index: int,
        response: InferenceResponse | None,
        final: bool,
        wanted: Sequence[str],
    ) -> None:
        """Send a response outside of a result. Any thread."""
        packer = Packer(self._memory.mapped)
        heads = ["null" if response is None else self._outputs.pack(response, wanted, packer)]
        data, own = self._pack(packer, heads)
        part = f"[{number},{index},{heads[0]},{'true' if final else 'false'}]"
        self._work.write_text(_PART, part, data, own)

    def _pack(self, packer: Packer, heads: list[str]) -> tuple[bytes, int]:
        """`pack`, with the block's number; without memory for it, all heads become errors."""
        try:
            data, block = pack(packer, self._memory.pool)
        except OSError as error:
            failure = error_head(ErrorCode.INTERNAL, f"no memory to share: {error.strerror}")
            heads[:] = [failure] * len(heads)
            return b"", 0
        return data, block.number if block else 0

    def _batch_of_caller(self) -> int:
        """The batch whose execution waits for the calling thread."""
        caller = threading.get_ident()
        looping = caller == self._runner.looping and not self._decoupled
        waits = caller == self._main or looping
        return self._executing if waits else 0

    # -- what the server says beside its work

    def _told(self, what: str, arguments: Sequence[Any]) -> Plain:
        if what == "release":
            for number in arguments[0]:
                self._memory.pool.release(number)
        elif what == "drop":
            for number in arguments[0]:
                self._memory.mapped.drop(number)
        elif what == "trim":
            self._side.release()
            numbers: list[Plain] = list(self._memory.pool.trim(arguments[0]))
            if numbers:
                self._side.tell("drop", numbers)
        elif what == "cancel":
            self._cancel(*arguments)
        elif what == "ended":
            self._batches.pop(arguments[0], None)
        elif what == "unready":
            return self._runner.unready(arguments[0])
        return None

    def _cancel(self, number: int, index: int) -> None:
        with self._cancelling:
            batch = self._batches.get(number)
            if batch is not None:
                batch.gone.add(index)
            elif number > self._last:
                self._early.add((number, index))

    def _warn(self, text: str) -> None:
        self._side.tell("log", "WARNING", text, "", 0, "")

    def _complain(self, text: str) -> None:
        self._side.tell("log", "ERROR", text, "", 0, "")


def _exit(code: object) -> NoReturn:
    """What `sys.exit` does, but without finalizers and without waiting for threads."""
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    for stream in (sys.stdout, sys.stderr):
        # A model may have closed them.
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 255 if isinstance(code, int) else code is not None)


def _die_with_server(lifeline: int) -> None:
    """Have the kernel kill this process and those it has started when the server is gone, even if
    the model holds the interpreter's lock: the server's end of the pipe closes, which counts as
    I/O."""
    if not hasattr(fcntl, "F_SETSIG"):
        return
    # A negative number is a group's; the server has made one for this process.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        # There is something to read only if the server has gone before.
        os.read(lifeline, 1)
        os._exit(1)


def main(descriptors: Sequence[int]) -> None:
    """descriptors: of the channels for work, for what lies beside, for blocks, and the lifeline."""
    work, side, blocks, lifeline = descriptors
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    _die_with_server(lifeline)
    # A crash in native code, or SIGABRT because of a hang, tells in the log where it was.
    faulthandler.enable()
    # What a model prints has to arrive before it is killed; a server that is told to end by ^C ends
    # its workers itself.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sockets = [socket.socket(fileno=descriptor) for descriptor in (work, side, blocks)]
    worker = Worker(*sockets)
    os.register_at_fork(after_in_child=worker.leave)
    try:
        worker.run()
    except EOFError:
        os._exit(1)
    except SystemExit as error:
        _exit(error.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        _exit(1)
    # Threads of the model must not hold up the end.
    _exit(0)
