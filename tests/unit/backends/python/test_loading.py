"""Models that load others: what the server is told, and what is refused before."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.backends.python.fake_link import FakeLink, connected

from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.loading import is_model_ready, load_model, unload_model


def test_what_the_server_is_told() -> None:
    link = FakeLink(lambda what, *_: what == "is_model_ready")
    with connected(link):
        load_model("a")
        load_model(model_name="a", config="{}", files={"file:1/model.onnx": b"x"})
        unload_model("a")
        unload_model(model_name="a", unload_dependents=True)
        assert is_model_ready("a") is True
        assert is_model_ready(model_name="a", model_version="2") is True
    assert link.said == [
        ("load_model", "a", {}),
        ("load_model", "a", {"config": "{}", "file:1/model.onnx": b"x"}),
        ("unload_model", "a", False),
        ("unload_model", "a", True),
        ("is_model_ready", "a", ""),
        ("is_model_ready", "a", "2"),
    ]


def test_files_may_be_any_bytes() -> None:
    link = FakeLink()
    with connected(link):
        load_model("a", "{}", {"file:1/a": bytearray(b"x"), "file:1/b": memoryview(b"y")})
    assert link.said == [("load_model", "a", {"config": "{}", "file:1/a": b"x", "file:1/b": b"y"})]


@pytest.mark.parametrize(
    ("call", "arguments", "text"),
    [
        (load_model, ("",), "model_name must not be empty"),
        (load_model, (3,), "model_name must be a str, not int"),
        (load_model, ("a", {}), "config must be a str, not dict"),
        (load_model, ("a", "", {"file:1/a": b""}), "files need config"),
        (load_model, ("a", "{}", {"1/a": b""}), "write 'file:<version>/<name>'"),
        (load_model, ("a", "{}", {"file:": b""}), "write 'file:<version>/<name>'"),
        (load_model, ("a", "{}", {1: b""}), "files has the key 1"),
        (load_model, ("a", "{}", {"file:1/a": "x"}), "files['file:1/a'] must be bytes, not str"),
        (unload_model, ("",), "model_name must not be empty"),
        (unload_model, ("a", 1), "unload_dependents must be True or False, not 1"),
        (is_model_ready, ("",), "model_name must not be empty"),
        (is_model_ready, ("a", 1), "model_version must be a str, not int"),
    ],
)
def test_what_is_refused(call: Callable[..., Any], arguments: tuple[Any, ...], text: str) -> None:
    link = FakeLink()
    with connected(link), pytest.raises(TritonModelException, match=re.escape(text)):
        call(*arguments)
    assert link.said == []


def test_the_servers_own_errors_pass() -> None:
    def refuse(*_: object) -> None:
        raise TritonModelException("unknown model 'a'")

    with connected(FakeLink(refuse)), pytest.raises(TritonModelException, match="unknown model"):
        load_model("a")


def test_without_a_server() -> None:
    with pytest.raises(TritonModelException, match="only in a model"):
        is_model_ready("a")
