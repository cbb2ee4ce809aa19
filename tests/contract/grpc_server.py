"""A gRPC server over a real repository, on either of its wires, for tests of what clients see."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from naiad.core.dataplane import DataPlane
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.registry import Registry
from naiad.repository.layout import Repositories
from naiad_backends.registry import BackendRegistry
from naiad_proto import grpc_service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"


def add_model(
    repository: Path, name: str, datatype: str = "FP32", batch: int = 0, delay_ms: int = 0
) -> None:
    """A model that echoes tensors of one datatype and two dimensions."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    dims = "[ -1 ]" if batch else "[ -1, -1 ]"
    (folder / "config.pbtxt").write_text(
        f"""
        backend: "identity"
        max_batch_size: {batch}
        input [ {{ name: "IN" data_type: TYPE_{datatype} dims: {dims} }} ]
        output [ {{ name: "OUT" data_type: TYPE_{datatype} dims: {dims} }} ]
        parameters {{ key: "execute_delay_ms" value {{ string_value: "{delay_ms}" }} }}
        """
    )


@contextlib.asynccontextmanager
async def data_plane(repository: Path, names: Sequence[str]) -> AsyncIterator[DataPlane]:
    """A data plane with these models loaded."""
    registry = Registry()
    lifecycle = Lifecycle(
        Repositories([repository]),
        BackendRegistry(),
        registry,
        LoadOptions(ControlMode.EXPLICIT),
    )
    assert await lifecycle.start(names) == {}
    plane = DataPlane(registry, lifecycle, "naiad", "1.2.3", strict=True)
    plane.started = True
    try:
        yield plane
    finally:
        await lifecycle.close()


def infer_message(model: str = "echo", rows: int = 1, **rest: Any) -> pb.ModelInferRequest:
    """A valid request with `rows` x 2 zeros."""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[pb.ModelInferRequest.InferInputTensor(name="IN", datatype="FP32", shape=[rows, 2])],
        raw_input_contents=[bytes(rows * 8)],
        **rest,
    )
