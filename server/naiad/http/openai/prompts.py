"""From a wish to the model's requests: one for each prompt, with the tensors that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from naiad.http.generate import shape_of
from naiad.http.openai.requests import Generation, Prompt
from naiad.http.openai.served import gives, takes
from naiad_backends import generation
from naiad_backends.api import Array, ModelSpec, Request, Tensor
from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_backends.generation import TextTools

_ALWAYS = (generation.TEXT_OUTPUT, generation.FINISH_REASON, generation.STOP_REASON)

_COUNTS = (
    generation.NUM_INPUT_TOKENS,
    generation.NUM_CACHED_TOKENS,
    generation.NUM_OUTPUT_TOKENS,
)


@dataclass(slots=True)
class Prepared:
    """A prompt, ready for the model.

    echo: the text that the answer begins with.
    first: the first token as text, where an answer shows the logprobs of the prompt.
    tokens: of the prompt, where the answer shows them.
    """

    request: Request
    echo: str = ""
    first: str = ""
    tokens: Sequence[int] | None = None


def needs_tools(wish: Generation) -> bool:
    """Whether the server itself has to know the tokens of the prompts."""
    echoes = wish.echo and (wish.logprobs is not None or isinstance(wish.prompts[0], list))
    return echoes or wish.token_ids


def prepare(
    spec: ModelSpec, tools: TextTools | None, wish: Generation, identifier: str
) -> list[Prepared]:
    """The requests of all prompts. tools: None if `needs_tools` says so. May take milliseconds.

    Raises UNSUPPORTED for what the model does not do, INVALID_ARG for a bad prompt; both name the
    field.
    """
    outputs, sampling, parameters = _outputs(spec, wish), b"", {}
    if takes(spec, generation.SAMPLING_PARAMETERS):
        sampling = orjson.dumps(_sampling(wish))
    else:
        parameters = _plain(spec, wish)
    made = []
    for prompt in wish.prompts:
        prepared = Prepared(Request(spec.name, "", identifier, outputs=outputs))
        if tools is not None:
            prompt = _tokens(tools, wish, prompt, prepared)
        elif wish.echo and isinstance(prompt, str):
            prepared.echo = prompt
        request = prepared.request
        request.priority = wish.priority
        request.parameters = parameters
        request.inputs = dict(_inputs(spec, wish, prompt, sampling))
        made.append(prepared)
    return made


def _tokens(tools: TextTools, wish: Generation, prompt: Prompt, prepared: Prepared) -> list[int]:
    """The prompt as tokens, and what the answer shows of them."""
    if isinstance(prompt, Mapping):
        special = bool(prompt.get("add_special_tokens", False))
        tokens = _encoded(tools, tools.render(prompt), special)
    elif isinstance(prompt, str):
        tokens = _encoded(tools, prompt, wish.sampling.get("add_special_tokens", True))
    else:
        tokens = prompt
    if wish.echo:
        prepared.echo = prompt if isinstance(prompt, str) else _decoded(tools, tokens)
        prepared.first = _decoded(tools, tokens[:1])
    prepared.tokens = tokens
    return tokens


def _encoded(tools: TextTools, text: str, special: bool) -> list[int]:
    most = tools.max_model_len
    if tools.exceeds(text, most):
        raise invalid(
            f"the prompt has more than {most} tokens, which is all that the model takes for prompt"
            " and answer together",
            field="prompt",
            hint="shorten it",
        )
    return list(tools.encode(text, special))


def _decoded(tools: TextTools, tokens: list[int]) -> str:
    try:
        return tools.decode(tokens)
    except NaiadError as error:
        error.field = "prompt"
        raise


def _outputs(spec: ModelSpec, wish: Generation) -> list[str]:
    # What nobody reads is not asked for: each chunk would have it.
    choices = (generation.INDEX,) if wish.n > 1 else ()
    counts = _COUNTS if wish.usage or not wish.stream else ()
    wanted = [name for name in (*_ALWAYS, *choices, *counts) if gives(spec, name)]
    extras = {
        "logprobs": (wish.logprobs is not None, generation.LOGPROBS),
        "prompt_logprobs": (_of_prompt(wish) is not None, generation.PROMPT_LOGPROBS),
        "return_token_ids": (wish.token_ids, generation.OUTPUT_IDS),
    }
    for field, (asked, name) in extras.items():
        if asked and not gives(spec, name):
            raise _cannot(spec, field, f"has no output '{name}'")
        if asked:
            wanted.append(name)
    return wanted


def _of_prompt(wish: Generation) -> int | None:
    if wish.echo and wish.logprobs is not None:
        return max(wish.logprobs, wish.prompt_logprobs or 0)
    return wish.prompt_logprobs


def _sampling(wish: Generation) -> dict[str, Any]:
    told = dict(wish.sampling)
    if wish.n > 1:
        told["n"] = wish.n
    if wish.logprobs is not None:
        told["logprobs"] = wish.logprobs
    if (prompt := _of_prompt(wish)) is not None:
        told["prompt_logprobs"] = prompt
    return told


def _plain(spec: ModelSpec, wish: Generation) -> dict[str, Any]:
    """The same as parameters of the request, for a model without that input."""
    told = {name: value for name, value in _sampling(wish).items() if value is not None}
    for name, value in told.items():
        if name == "n" or not isinstance(value, bool | int | float | str):
            raise _cannot(spec, name, f"has no input '{generation.SAMPLING_PARAMETERS}'")
    return told


def _inputs(
    spec: ModelSpec, wish: Generation, prompt: Prompt, sampling: bytes
) -> list[tuple[str, Tensor]]:
    if isinstance(prompt, list):
        name, field = generation.INPUT_IDS, "prompt"
        array: Array = np.array(prompt, np.int64)
    elif isinstance(prompt, str):
        name, field, array = generation.TEXT_INPUT, "prompt", one(prompt.encode())
    else:
        name, field, array = generation.CHAT, "messages", one(orjson.dumps(prompt))
    if not takes(spec, name):
        raise _cannot(spec, field, f"has no input '{name}'")
    given = {
        name: array,
        generation.SAMPLING_PARAMETERS: one(sampling),
        generation.STREAM: np.array([wish.stream]),
        generation.EXCLUDE_INPUT: np.array([True]),
    }
    return [
        (tensor.name, tensor_for(spec, tensor.name, given[tensor.name]))
        for tensor in spec.inputs
        if tensor.name in given
    ]


def one(data: bytes) -> Array:
    """An array of one element of BYTES."""
    array = np.empty(1, object)
    array[0] = data
    return array


def tensor_for(spec: ModelSpec, name: str, array: Array) -> Tensor:
    """The elements in the shape that a model's input wants; a batch of one if it batches."""
    wanted = next(tensor for tensor in spec.inputs if tensor.name == name)
    shape = shape_of(wanted, array.size, spec.max_batch_size > 0)
    return Tensor.from_numpy(name, array.reshape(shape))


def _cannot(spec: ModelSpec, field: str, why: str) -> NaiadError:
    return unsupported(f"the model '{spec.name}' {why}", field=field)
