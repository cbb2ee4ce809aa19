"""An embedding model on a live server, by every protocol: against the same model in ONNX."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e.official import client_of
from tests.e2e.process import Reply, ServerProcess, eventually, serving
from tests.e2e.tensors import Array
from tests.e2e.test_llm_faults import engines
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

MODEL = "minilm_text"
TIGHT = """
backend: "llm"
parameters { key: "max_num_seqs" value { string_value: "1" } }
parameters { key: "max_num_queued_reqs" value { string_value: "1" } }
"""
LONG = "Waves rolled in from the west and broke on the sand. " * 80
TEXTS = [
    "That is a happy person",
    "That is a very happy person",
    "Today is a sunny day",
    "",
    "Na\u00efve caf\u00e9-goers sang loudly; nobody minded! \u4f60\u597d \U0001f30a",
    "one two three " * 100,
]


@pytest.fixture(scope="module")
def server(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    (repository / MODEL).symlink_to(example_repository / MODEL)
    (repository / "tight").mkdir()
    (repository / "tight" / "1").symlink_to(example_repository / MODEL / "1")
    (repository / "tight" / "config.pbtxt").write_text(TIGHT)
    with serving(tmp_path_factory.mktemp("server"), repository) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer(example_repository: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(example_repository / MODEL / "1" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    return tokenizer


@pytest.fixture(scope="module")
def reference(example_repository: Path, tokenizer: Tokenizer) -> Any:
    """A function that gives the vector of a text."""
    session = onnxruntime.InferenceSession(example_repository / "minilm" / "1" / "model.onnx")

    def vector(text: str) -> Array:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vectors: Array = np.asarray(session.run(["embedding"], feed)[0])
        return np.asarray(vectors[0])

    return vector


def text_input(module: Any, texts: list[str]) -> Any:
    array = np.array([[text.encode()] for text in texts], object)
    made = module.InferInput("text_input", list(array.shape), "BYTES")
    return made.set_data_from_numpy(array)


def clients(server: ServerProcess) -> Iterator[tuple[Any, Any]]:
    for module in (tritonclient.http, tritonclient.grpc):
        address = server.http if module is tritonclient.http else server.grpc
        with module.InferenceServerClient(address) as client:
            yield module, client


def test_the_configuration_follows_from_the_files(server: ServerProcess) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        config = client.get_model_config(MODEL)
    assert config["max_batch_size"] > 1
    assert [one["name"] for one in config["input"]] == ["text_input", "input_ids"]
    assert config["output"][0]["dims"] in ([384], ["384"])


def test_texts_in_one_request(server: ServerProcess, reference: Any, tokenizer: Any) -> None:
    for module, client in clients(server):
        result = client.infer(MODEL, [text_input(module, TEXTS)])
        vectors = result.as_numpy("embedding")
        np.testing.assert_allclose(vectors, [reference(text) for text in TEXTS], atol=1e-5)
        counts = [[len(tokenizer.encode(text).ids)] for text in TEXTS]
        assert result.as_numpy("num_input_tokens").tolist() == counts


def test_many_requests_at_once(server: ServerProcess, reference: Any) -> None:
    expected = {text: reference(text) for text in TEXTS}
    # Unlike the one for HTTP, this client may be shared by threads.
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:

        def embed(text: str) -> Array:
            result = client.infer(MODEL, [text_input(tritonclient.grpc, [text])])
            return np.asarray(result.as_numpy("embedding"))

        with ThreadPoolExecutor(16) as threads:
            for text, vectors in zip(TEXTS * 8, threads.map(embed, TEXTS * 8), strict=True):
                np.testing.assert_allclose(vectors[0], expected[text], atol=1e-5)


def test_tokens_and_wanted_outputs(
    server: ServerProcess, reference: Any, tokenizer: Tokenizer
) -> None:
    ids = np.array([tokenizer.encode(TEXTS[0]).ids], np.int64)
    for module, client in clients(server):
        given = module.InferInput("input_ids", list(ids.shape), "INT64").set_data_from_numpy(ids)
        wanted = [module.InferRequestedOutput("embedding")]
        result = client.infer(MODEL, [given], outputs=wanted)
        np.testing.assert_allclose(result.as_numpy("embedding")[0], reference(TEXTS[0]), atol=1e-5)
        assert result.as_numpy("num_input_tokens") is None


def test_generate_takes_a_text(server: ServerProcess, reference: Any) -> None:
    reply = server.post(f"/v2/models/{MODEL}/generate", {"text_input": TEXTS[1]})
    assert reply.status == 200, reply.body
    np.testing.assert_allclose(reply.json()["embedding"], reference(TEXTS[1]), atol=1e-5)


def test_a_text_that_is_too_long_is_refused_or_cut(server: ServerProcess, reference: Any) -> None:
    for module, client in clients(server):
        given = [text_input(module, ["short", LONG])]
        with pytest.raises(InferenceServerException, match=r"962 tokens.*1 to 512"):
            client.infer(MODEL, given)
        with pytest.raises(InferenceServerException, match=r"more than 512 tokens.*1 to 512"):
            client.infer(MODEL, [text_input(module, ["short", LONG * 1_000])])
        cut = client.infer(MODEL, given, parameters={"truncate_prompt_tokens": -1})
        assert cut.as_numpy("num_input_tokens")[1] == 512
        np.testing.assert_allclose(cut.as_numpy("embedding")[1], reference(LONG), atol=1e-5)
        with pytest.raises(InferenceServerException, match="no number of tokens"):
            client.infer(MODEL, given, parameters={"truncate_prompt_tokens": 0})


def test_mistakes_are_named(server: ServerProcess) -> None:
    def raw(*inputs: dict[str, Any]) -> str:
        reply = server.post(f"/v2/models/{MODEL}/infer", {"inputs": list(inputs)})
        assert reply.status == 400, reply.body
        return str(reply.json()["error"])

    text = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [101, 102]}
    assert "either texts or tokens" in raw(text, ids)
    assert "tokens are from 0 to 30521" in raw({**ids, "data": [101, 30522]})
    assert "tokens are from 0 to 30521" in raw({**ids, "data": [-1, 5]})
    assert "1 to 512" in raw({**ids, "shape": [1, 600], "data": [5] * 600})
    for module, client in clients(server):
        broken = module.InferInput("text_input", [1, 1], "BYTES")
        broken.set_data_from_numpy(np.array([[b"\xff\xfe"]], object))
        with pytest.raises(InferenceServerException, match="UTF-8"):
            client.infer(MODEL, [broken])


def test_openai_s_client(server: ServerProcess, reference: Any, tokenizer: Tokenizer) -> None:
    with client_of(server) as client:
        texts = [text for text in TEXTS if text]
        answer = client.embeddings.create(model=MODEL, input=texts)
        expected = [reference(text) for text in texts]
        np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-5)
        assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(t).ids) for t in texts)
        tokens = client.embeddings.create(
            model=MODEL, input=tokenizer.encode(texts[0]).ids, encoding_format="float"
        )
        np.testing.assert_allclose(tokens.data[0].embedding, expected[0], atol=1e-5)
        assert MODEL in [model.id for model in client.models.list()]


def embed(server: ServerProcess, model: str) -> Reply:
    given = {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [TEXTS[0]]}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [given]})


def vector_of(server: ServerProcess, model: str) -> list[float]:
    """Empty while there is no engine."""
    reply = embed(server, model)
    if reply.status != 200:
        return []
    vector: list[float] = reply.json()["outputs"][0]["data"]
    return vector


def test_a_full_queue_and_an_engine_that_is_killed(server: ServerProcess, reference: Any) -> None:
    """Of three texts, two find room; they hear of the engine's end, and another one comes."""
    before = engines(server)
    for engine in before:
        os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as threads:
        replies = [threads.submit(embed, server, "tight") for _ in range(3)]
        refused = next(as_completed(replies)).result()
        assert refused.status == 503 and b"queue is full" in refused.body
        for engine in before:
            os.kill(engine, signal.SIGKILL)
        bodies = [reply.result().body for reply in replies]
    assert sum(b"the engine of 'tight_0' has ended" in body for body in bodies) == 2, bodies
    for model in (MODEL, "tight"):
        np.testing.assert_allclose(
            eventually(partial(vector_of, server, model), 60), reference(TEXTS[0]), atol=1e-5
        )
    assert not before & engines(server)
