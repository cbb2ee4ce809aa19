"""POST /v1/embeddings: a vector for each text, all of them at once for the model's batcher."""

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from naiad.core.dataplane import DataPlane
from naiad.http.openai.fields import Fields, are_tokens
from naiad.http.openai.merged import AT_ONCE
from naiad.http.openai.prompts import one, tensor_for
from naiad.http.openai.requests import refuse
from naiad.http.openai.served import gives, takes, text_of
from naiad_backends import generation
from naiad_backends.api import Array, ModelSpec, Request, Response
from naiad_backends.errors import NaiadError, invalid, unsupported

Texts = Sequence[str | list[int]]

TRUNCATE = "truncate_prompt_tokens"
SIDE = "truncation_side"

MOST = 2_048
"""Inputs of one request."""

_INPUTS = (generation.TEXT_INPUT, generation.INPUT_IDS)
_FORMATS = ("float", "base64")
_SIDES = ("left", "right")

_REFUSED: dict[str, tuple[Any, ...]] = {
    "messages": (),
    "add_special_tokens": (True,),
    "padding": ("do_not_pad",),
    "use_activation": (True,),
    "normalize": (True,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "cache_salt": (),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a body asks for.

    dimensions: None for as many as the model gives.
    parameters: of the model's requests: how to cut texts, and the dimensions again.
    """

    texts: Texts
    encoding: str
    dimensions: int | None
    parameters: Mapping[str, int | str]

    @property
    def cuts(self) -> str:
        """The first field that asks for less than the whole text; empty for none."""
        return next((name for name in (TRUNCATE, SIDE) if name in self.parameters), "")


def read(fields: Fields) -> Wish:
    """What a body asks for. Raises INVALID_ARG or UNSUPPORTED, naming the field."""
    refuse(fields, _REFUSED)
    encoding = fields.text("encoding_format") or "float"
    if encoding not in _FORMATS:
        raise fields.wrong("encoding_format", f"must be one of {', '.join(_FORMATS)}")
    dimensions = fields.integer("dimensions", 1, 2**31 - 1)
    most = fields.integer(TRUNCATE, -1, 2**31 - 1)
    if most == 0:
        raise fields.wrong(TRUNCATE, "is 0, but must be -1 or at least 1")
    side = fields.text(SIDE)
    if side is not None and side not in _SIDES:
        raise fields.wrong(SIDE, f"must be one of {', '.join(_SIDES)}")
    given = {"dimensions": dimensions, TRUNCATE: most, SIDE: side}
    parameters = {name: value for name, value in given.items() if value is not None}
    return Wish(_texts(fields), encoding, dimensions, parameters)


def _texts(fields: Fields) -> Texts:
    given = fields.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and are_tokens(given)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", "must be a text, tokens, or a list of one of the two")
    if len(given) > MOST:
        raise fields.wrong("input", f"has {len(given)} entries, but may have {MOST}")
    for number, text in enumerate(given):
        if not isinstance(text, str) and not (isinstance(text, list) and are_tokens(text)):
            raise fields.wrong(f"input[{number}]", "must be a text or a list of tokens")
        if not text:
            raise fields.wrong(f"input[{number}]", "must not be empty")
    return given


def requests_of(spec: ModelSpec, wish: Wish, identifier: str) -> list[Request]:
    """The model's requests, one for each text. Raises UNSUPPORTED for what it does not take."""
    outputs = [generation.EMBEDDING]
    if gives(spec, generation.NUM_INPUT_TOKENS):
        outputs.append(generation.NUM_INPUT_TOKENS)
    made = []
    for text in wish.texts:
        tokens = not isinstance(text, str)
        name = generation.INPUT_IDS if tokens else text_of(spec)
        if not name or not takes(spec, name):
            what = "tokens" if tokens else "text"
            raise unsupported(f"the model '{spec.name}' takes no {what}", field="input")
        array: Array = np.array(text, np.int64) if tokens else one(str(text).encode())
        request = Request(spec.name, "", identifier, outputs=outputs)
        request.parameters = wish.parameters
        request.inputs = {name: tensor_for(spec, name, array)}
        made.append(request)
    return made


async def run(dataplane: DataPlane, requests: Sequence[Request]) -> list[Response]:
    """All responses. Raises the first error, and then ends what still runs."""
    places = asyncio.Semaphore(AT_ONCE)

    async def infer(request: Request) -> Response:
        async with places:
            return await dataplane.infer(request)

    tasks = [asyncio.ensure_future(infer(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    except NaiadError as error:
        if error.field in _INPUTS:
            error.field = "input"
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def encode(
    spec: ModelSpec,
    responses: Sequence[Response],
    wish: Wish,
    identifier: str,
) -> bytes:
    """The answer. Raises INVALID_ARG for dimensions that the model does not have."""
    data, tokens = [], 0
    for number, response in enumerate(responses):
        told = {tensor.name: tensor.numpy().ravel() for tensor in response.outputs}
        vector = told[generation.EMBEDDING]
        if wish.dimensions not in (None, vector.size):
            raise invalid(
                f"the model '{spec.name}' gives {vector.size} dimensions, not {wish.dimensions}",
                field="dimensions",
                hint="leave it out",
            )
        if generation.NUM_INPUT_TOKENS in told:
            tokens += int(told[generation.NUM_INPUT_TOKENS][0])
        data.append(
            {"object": "embedding", "index": number, "embedding": _form(vector, wish.encoding)}
        )
    return orjson.dumps(
        {
            "id": f"embd-{identifier}",
            "object": "list",
            "created": int(time.time()),
            "model": spec.name,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _form(vector: Array, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    return np.ascontiguousarray(vector)
