"""A model on a GPU behind the server: texts as a CPU writes them, many at once, and clients that
leave."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import openai
import pytest
import torch
from tests.e2e import tiny_llama
from tests.e2e.official import client_of
from tests.e2e.process import serving

if not torch.cuda.is_available():
    pytest.skip("there is no GPU that torch can use", allow_module_level=True)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    repository = tmp_path_factory.mktemp("repository")
    tiny_llama.write(repository, "cpu")
    on_gpu = tiny_llama.write(repository, "gpu").parent / "config.pbtxt"
    on_gpu.write_text(on_gpu.read_text() + "instance_group [ { kind: KIND_GPU } ]\n")
    with (
        serving(tmp_path_factory.mktemp("server"), repository) as server,
        client_of(server) as client,
    ):
        yield client


def text(client: openai.OpenAI, model: str, temperature: float, number: int) -> str:
    """A completion. Streams are of every second number."""
    prompt = "".join(chr(97 + (number * 7 + place) % 26) for place in range(1 + number * 11 % 90))
    wish = {"model": model, "prompt": prompt, "max_tokens": 5 + number % 40, "seed": number}
    if number % 2:
        parts = client.completions.create(**wish, temperature=temperature, stream=True)  # type: ignore[call-overload]
        return "".join(part.choices[0].text for part in parts)
    answer = client.completions.create(**wish, temperature=temperature)  # type: ignore[call-overload]
    return str(answer.choices[0].text)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_many_at_once_as_on_a_cpu(client: openai.OpenAI, temperature: float) -> None:
    """In float32 and with the same random numbers; rounding decides a few of sixty at most."""
    with ThreadPoolExecutor(16) as pool:
        wanted, found = (
            list(pool.map(partial(text, client, model, temperature), range(60)))
            for model in ("cpu", "gpu")
        )
    assert sum(one == other for one, other in zip(wanted, found, strict=True)) >= 57
    assert len(set(found)) > 50


def test_clients_that_leave(client: openai.OpenAI) -> None:
    """What they had is free again: whoever comes next is answered as before."""
    before = text(client, "gpu", 0.0, 1)
    for number in range(20):
        stream = client.completions.create(
            model="gpu", prompt="a" * (1 + number), max_tokens=400, temperature=0, stream=True
        )
        next(iter(stream))
        stream.close()
    assert text(client, "gpu", 0.0, 1) == before
