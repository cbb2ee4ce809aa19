"""The process of an engine: `python -m naiad_backends.llm.engine.worker FD`.

Loads what the first message says, then takes messages and runs steps, until the socket ends. Knows
no requests. A step that fails costs the requests that were in it; when nothing works any more the
process says so and ends.
"""

import contextlib
import gc
import logging
import socket
import sys

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.engine.link import Link
from naiad_backends.llm.engine.loading import load
from naiad_backends.llm.engine.work import Work
from naiad_backends.llm.messages import Failed

logger = logging.getLogger(__name__)

_FAILURES = 3
"""Steps that may fail one after the other."""


def main() -> None:
    """Be an engine on the socket whose descriptor is the argument."""
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(EOFError, ConnectionError):
        work = begin(link)
        if work:
            serve(link, work)


def begin(link: Link) -> Work | None:
    """Load what the server wants; None if that fails, and the server has been told."""
    start = link.first()
    try:
        work = load(start)
    except NaiadError as error:
        link.send(Failed(error.code, str(error)))
        return None
    except Exception as error:
        logger.exception("the model cannot be loaded")
        link.send(Failed(Code.INTERNAL, f"the model cannot be loaded: {_said(error)}"))
        return None
    # What is there now stays, so the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    link.send(work.ready)
    return work


def serve(link: Link, work: Work) -> None:
    """Run until nothing works any more. EOFError or ConnectionError when the server has gone.

    Messages are taken before each step, so a request is cancelled within one step. Each step is one
    message to the server, as is what becomes of messages that need none.
    """
    failures = 0
    while failures < _FAILURES:
        for message in link.receive(wait=work.idle):
            work.take(message)
        try:
            told = work.run()
            failures = 0
        except Exception as error:
            failures += 1
            logger.exception("a step has failed")
            told = work.fail(f"a step of the engine has failed: {_said(error)}")
        link.send(told)
    link.send(Failed(Code.INTERNAL, f"{failures} steps have failed, one after the other"))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
