"""Log settings with tritonclient over both protocols, and what they do to a server's log."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tritonclient.utils import InferenceServerException

START = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    with serving(tmp_path_factory.mktemp("log"), repository, flags=EXPLICIT_ALL) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Any]:
    """A client whose server has the settings of its start."""
    kind = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    with kind.InferenceServerClient(getattr(server, request.param)) as one:
        yield one
        one.update_log_settings({**START, "log_file": None})


def plain(answer: Any) -> dict[str, Any]:
    """Settings as tritonclient gives them, in HTTP's form."""
    if isinstance(answer, dict):
        return answer
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in answer.settings.items()
    }


def reload(server: ServerProcess) -> str:
    """What the log says of an unload and a load."""
    before = len(server.log())
    for action in ("unload", "load"):
        assert server.post(f"/v2/repository/models/identity/{action}").status == 200
    return server.log()[before:]


def test_settings_are_told_and_changed(client: Any) -> None:
    assert plain(client.get_log_settings()) == START
    changes = {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    assert plain(client.update_log_settings(changes)) == {**START, **changes}
    assert plain(client.update_log_settings({"log_info": None})) == {**START, **changes}
    assert plain(client.get_log_settings()) == {**START, **changes}


def test_settings_act_on_the_log(client: Any, server: ServerProcess) -> None:
    assert re.search(r"^I\d{4} .* is ready$", reload(server), re.MULTILINE)
    client.update_log_settings({"log_format": "ISO8601"})
    assert re.search(r"^[0-9-]+T[0-9:]+Z I .* is ready$", reload(server), re.MULTILINE)
    client.update_log_settings({"log_info": False})
    assert "is ready" not in reload(server)


@pytest.mark.parametrize(
    ("changes", "http", "status"),
    [
        ({"log_file": "other"}, "501", "UNIMPLEMENTED"),
        ({"log_format": "xml"}, "400", "INVALID_ARGUMENT"),
        ({"log_level": True}, "400", "INVALID_ARGUMENT"),
    ],
)
def test_bad_settings(client: Any, changes: dict[str, Any], http: str, status: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.update_log_settings({"log_error": False, **changes})
    assert caught.value.status() in (http, f"StatusCode.{status}")
    assert next(iter(changes)) in caught.value.message()
    assert plain(client.get_log_settings()) == START


def test_values_of_the_wrong_type(server: ServerProcess) -> None:
    wrong: list[Any] = [{"log_info": 1}, {"log_verbose_level": "1"}, {"log_format": True}, []]
    for changes in wrong:
        assert server.post("/v2/logging", changes).status == 400
    request = tritonclient.grpc.service_pb2.LogSettingsRequest()
    request.settings["log_info"].string_param = "true"
    with grpc.insecure_channel(server.grpc) as channel:
        stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LogSettings(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.call("PUT", "/v2/logging").headers["Allow"] == "GET, POST"


def test_the_extension_is_named(server: ServerProcess) -> None:
    assert "logging" in server.get("/v2").json()["extensions"]


def test_the_options_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    graphs.write_model(tmp_path / "models", "identity", config=graphs.IDENTITY)
    file = tmp_path / "naiad.log"
    flags = [f"--log-file={file}", "--log-format=ISO8601", "--log-warning=false"]
    with serving(tmp_path / "log", tmp_path / "models", flags=flags) as server:
        wanted = {"log_file": str(file), "log_format": "ISO8601", "log_warning": False}
        assert server.get("/v2/logging").json() == {**START, **wanted}
    assert server.log() == ""
    assert "Z I " in file.read_text() and "is ready" in file.read_text()
