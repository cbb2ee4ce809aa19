"""From the model's responses to the answer: at once, or event by event while it is made."""

import logging
from collections.abc import AsyncGenerator

from naiad.http.generate import event
from naiad.http.openai import errors
from naiad.http.openai.form import DONE, Form
from naiad.http.openai.merged import Merged
from naiad_backends.api import Response
from naiad_backends.errors import NaiadError

logger = logging.getLogger(__name__)

_ALIVE = b": the model is at work\n\n"


async def whole(form: Form, merged: Merged) -> bytes:
    """The answer, at the end of all streams. Raises their first error."""
    try:
        while (arrived := await merged.take()) is not None:
            for number, response in arrived:
                form.choices.keep(number, response)
    finally:
        await merged.close()
    form.choices.end()
    return form.whole()


async def stream(form: Form, merged: Merged) -> AsyncGenerator[bytes, None]:
    """The events of a stream. The first item is empty and no event: it comes when the answer can
    begin, so that what goes wrong before is raised and has a status of its own. What goes wrong
    behind it is an event. Once the first item is there, closing it ends the streams."""
    try:
        arrived = await merged.take()
        yield b""
        try:
            while arrived is not None:
                data = _ALIVE if not arrived else _texts(form, arrived)
                if data:
                    yield data
                arrived = await merged.take()
            yield _rest(form)
        except NaiadError as error:
            yield _failure(error)
        except Exception:
            logger.exception("a stream of model '%s' failed", form.wish.model)
            yield _failure(errors.MISTAKE)
    finally:
        await merged.close()


def _texts(form: Form, arrived: list[tuple[int, Response]]) -> bytes:
    events = []
    for number, response in arrived:
        for choice, piece in form.choices.add(number, response):
            events.append(form.text(choice, piece))
    return b"".join(events)


def _rest(form: Form) -> bytes:
    events = [form.text(choice, piece) for choice, piece in form.choices.end()]
    return b"".join((*events, form.last()))


def _failure(error: NaiadError) -> bytes:
    return event(errors.body(error)) + DONE
