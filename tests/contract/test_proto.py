"""The wire contract: stubs equal tritonclient's byte for byte, come from our files, and live beside
every other package that registers these names.

What one process can import only once is tried in processes of its own. Tests that run the pinned
generator make its environment first, which takes a while once on each host.
"""

import hashlib
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import grpc
import pytest
import tritonclient.grpc as theirs
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from naiad_proto import (
    generate,
    grpc_service_pb2,
    grpc_service_pb2_grpc,
    health,
    model_config_pb2,
)

# Figures of tritonclient 2.73: what its users' clients were built from.
HASHES = {
    "model_config.proto": "d9cbaa1bf0cda450d16dcb115abab2f87a9105ccc90cf3d10520d15594791e5e",
    "grpc_service.proto": "b834308ff4da47f2370465e4d93ebc48c2d58488813c5bf8aa46531006df1097",
}

OURS = "from naiad_proto import grpc_service_pb2, grpc_service_pb2_grpc, health, model_config_pb2"
THEIRS = "import tritonclient.grpc as theirs"
SAME_CLASSES = """
pairs = [(grpc_service_pb2, theirs.service_pb2), (model_config_pb2, theirs.model_config_pb2)]
names = [
    (our_module, their_module, name)
    for our_module, their_module in pairs
    for name in our_module.DESCRIPTOR.message_types_by_name
]
assert len(names) == 48 + 21
for our_module, their_module, name in names:
    assert getattr(our_module, name) is getattr(their_module, name), name
"""

# What grpcio-health-checking does at import: the same symbols under another file name.
NEIGHBOUR = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(
    name="grpc_health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
)
file.message_type.add(name="HealthCheckRequest")
file.message_type.add(name="HealthCheckResponse").enum_type.add(name="ServingStatus").value.add(
    name="UNKNOWN", number=0
)
file.service.add(name="Health")
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""

HEALTH_IS_ABSENT = """
from google.protobuf import descriptor_pool
pool = descriptor_pool.Default()
finds = [
    (pool.FindFileByName, "health.proto"),
    (pool.FindServiceByName, "grpc.health.v1.Health"),
    (pool.FindMessageTypeByName, "grpc.health.v1.HealthCheckRequest"),
    (pool.FindMessageTypeByName, "grpc.health.v1.HealthCheckResponse"),
]
for find, name in finds:
    try:
        find(name)
    except KeyError:
        continue
    raise SystemExit(f"{name} is in the default pool")
"""


def run_fresh(*parts: str) -> None:
    """Runs the parts as one program in a new process; what it prints belongs to the failure."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def paths_of(file: FileDescriptor) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for service in file.services_by_name.values()
        for method in service.methods
    }


# ---- Equal to tritonclient ----


@pytest.mark.parametrize("module", [model_config_pb2, grpc_service_pb2])
def test_descriptor_is_the_contract(module: ModuleType) -> None:
    file: FileDescriptor = module.DESCRIPTOR
    assert hashlib.sha256(file.serialized_pb).hexdigest() == HASHES[file.name]


@pytest.mark.parametrize(
    ("first", "second"),
    [(OURS, THEIRS), (THEIRS, OURS)],
    ids=["ours-first", "theirs-first"],
)
def test_classes_are_shared_with_tritonclient(first: str, second: str) -> None:
    run_fresh(first, second, SAME_CLASSES)


def test_stubs_load_without_a_warning() -> None:
    run_fresh("import warnings", "warnings.simplefilter('error')", OURS)


class Echo:
    """ModelInfer as a mix-in for either package's servicer: answers with what came in."""

    def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> grpc_service_pb2.ModelInferResponse:
        response = grpc_service_pb2.ModelInferResponse(
            model_name=request.model_name,
            model_version="7",
            id=request.id,
            raw_output_contents=request.raw_input_contents,
        )
        for tensor in request.inputs:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, parameter in request.parameters.items():
            response.parameters[name].CopyFrom(parameter)
        return response


@pytest.mark.parametrize(
    ("serving", "calling"),
    [
        (grpc_service_pb2_grpc, theirs.service_pb2_grpc),
        (theirs.service_pb2_grpc, grpc_service_pb2_grpc),
    ],
    ids=["they-call-us", "we-call-them"],
)
def test_messages_travel_both_ways(serving: ModuleType, calling: ModuleType) -> None:
    servicer = type("Servicer", (Echo, serving.GRPCInferenceServiceServicer), {})()
    request = grpc_service_pb2.ModelInferRequest(
        model_name="échó",
        id="42",
        inputs=[{"name": "x", "datatype": "INT8", "shape": [2, 0, 3]}],
        raw_input_contents=[b"", b"\x00\xff"],
    )
    request.parameters["priority"].uint64_param = 2**64 - 1
    request.parameters["timeout"].int64_param = -1

    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    serving.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = calling.GRPCInferenceServiceStub(channel)
            response = stub.ModelInfer(request, timeout=30)
            with pytest.raises(grpc.RpcError) as unserved:
                stub.ServerLive(grpc_service_pb2.ServerLiveRequest(), timeout=30)
    finally:
        server.stop(grace=None).wait()

    assert response.model_name == "échó"
    assert response.id == "42"
    assert list(response.outputs[0].shape) == [2, 0, 3]
    assert list(response.raw_output_contents) == [b"", b"\x00\xff"]
    assert response.parameters == request.parameters
    assert unserved.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_service_has_the_twenty_calls() -> None:
    names = """
        ServerLive ServerReady ServerMetadata ModelReady ModelMetadata ModelConfig ModelStatistics
        ModelInfer ModelStreamInfer RepositoryIndex RepositoryModelLoad RepositoryModelUnload
        SystemSharedMemoryStatus SystemSharedMemoryRegister SystemSharedMemoryUnregister
        CudaSharedMemoryStatus CudaSharedMemoryRegister CudaSharedMemoryUnregister
        TraceSetting LogSettings
    """
    calls = paths_of(grpc_service_pb2.DESCRIPTOR)
    assert len(calls) == 20
    assert calls == {f"/inference.GRPCInferenceService/{name}" for name in names.split()}


# ---- Made from our files ----

generator = pytest.mark.timeout(900)
"""Gives a test the time to make the generator's environment, as the first run on a host does."""


@generator
def test_stubs_are_fresh(capfd: pytest.CaptureFixture[str]) -> None:
    status = generate.main(["--check"])
    assert status == 0, capfd.readouterr().err


@generator
def test_check_names_each_stale_stub(tmp_path: Path) -> None:
    stubs = generate.make_stubs(generate.ensure_environment(generate.default_environment()))
    generate.write_stubs(stubs, tmp_path)
    assert generate.find_stale(stubs, tmp_path) == []

    (tmp_path / "grpc_service_pb2.py").write_text("# edited by hand\n")
    (tmp_path / "model_config_pb2.pyi").unlink()
    (tmp_path / "health_pb2.py").write_text("# left over\n")
    (tmp_path / "health.py").write_text("# not a stub\n")
    assert generate.find_stale(stubs, tmp_path) == [
        "grpc_service_pb2.py",
        "health_pb2.py",
        "model_config_pb2.pyi",
    ]

    generate.write_stubs(stubs, tmp_path)
    assert generate.find_stale(stubs, tmp_path) == []
    assert (tmp_path / "health.py").exists()


def test_generator_that_cannot_run_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    assert generate.main(["--check", "--environment", str(tmp_path / "empty")]) == 2
    assert "grpcio-tools==1.76.0 did not run" in capfd.readouterr().err


def test_stubs_import_each_other_from_the_package() -> None:
    for file in generate.STUB_FOLDER.glob("*_pb2*.py*"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not line.startswith(("import grpc_service_pb2", "import model_config_pb2")), file


# ---- Health ----


@generator
def test_health_messages_equal_their_file(tmp_path: Path) -> None:
    out = tmp_path / "health.bin"
    python = generate.ensure_environment(generate.default_environment())
    generate.run_protoc(python, f"--descriptor_set_out={out}", "health.proto")
    (compiled,) = FileDescriptorSet.FromString(out.read_bytes()).file

    assert FileDescriptorProto.FromString(health.DESCRIPTOR.serialized_pb) == compiled


def test_health_stays_out_of_the_default_pool() -> None:
    run_fresh(OURS, HEALTH_IS_ABSENT)


@pytest.mark.parametrize(
    ("first", "second"), [(OURS, NEIGHBOUR), (NEIGHBOUR, OURS)], ids=["ours-first", "ours-second"]
)
def test_health_lives_beside_another_health_package(first: str, second: str) -> None:
    run_fresh(first, second, "assert health.HealthCheckResponse(status=1).status == 1")


def test_no_stub_names_health() -> None:
    """A stub would put health into the default pool, where the usual health packages have it."""
    stubs = sorted(generate.STUB_FOLDER.glob("*_pb2*.py*"))
    assert [file.name for file in stubs] == [
        "grpc_service_pb2.py",
        "grpc_service_pb2.pyi",
        "grpc_service_pb2_grpc.py",
        "model_config_pb2.py",
        "model_config_pb2.pyi",
    ]
    assert [file.name for file in stubs if b"grpc.health" in file.read_bytes()] == []


def test_health_paths_are_those_of_the_service() -> None:
    assert paths_of(health.DESCRIPTOR) == {health.CHECK_METHOD, health.WATCH_METHOD}
    assert health.CHECK_METHOD == "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize("status", health.ServingStatus)
def test_health_response_on_the_wire(status: health.ServingStatus) -> None:
    wire = health.HealthCheckResponse(status=status).SerializeToString()
    assert wire == (bytes([0x08, status]) if status else b"")
    assert health.HealthCheckResponse.FromString(wire).status == status


def test_health_request_on_the_wire() -> None:
    wire = health.HealthCheckRequest(service="resnet").SerializeToString()
    assert wire == b"\x0a\x06resnet"
    assert health.HealthCheckRequest.FromString(wire).service == "resnet"
