"""A backend that tells its clients what a request brought, found as other people's are.

A model has the input `x` and the output `y`, of one datatype. One that is not decoupled answers
`y = x`, with the request's parameters as parameters of the response, and what the server reads
itself under `server.` and its name. With the parameter `steps` it asks to run the request again
until it has run so often, and tells `server.runs`. One that is decoupled reads from its parameters
what to do:

responses: how many of `y = x + number` to send, each with the parameter `number`.
end: how it ends: `empty`, with the `last` response, or by the name of an error's code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from naiad_backends.api import (
    Backend,
    Completion,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Parameter,
    Placement,
    Request,
    Responder,
    Response,
    StreamingInstance,
    Tensor,
)
from naiad_backends.errors import Code, NaiadError

ROOT = Path(__file__).parents[2]


class TellInstance(StreamingInstance):
    """Both kinds of models."""

    blocking = False

    def __init__(self) -> None:
        self._runs: dict[int | str, int] = {}

    def execute(self, requests: Sequence[Request]) -> Execution:
        return Execution([self._step(request) for request in requests])

    def _step(self, request: Request) -> Response:
        steps = request.parameters.get("steps")
        if steps is None:
            return _told(request, {})
        runs = self._runs.pop(request.correlation_id, 0) + 1
        if runs < int(steps):
            self._runs[request.correlation_id] = runs
            return Response(reschedule=True)
        return _told(request, {"server.runs": runs})

    def stream(self, request: Request, responder: Responder) -> None:
        count = int(request.parameters.get("responses", 0))
        end = str(request.parameters.get("end", "empty"))
        for number in range(count):
            y = request.inputs["x"].numpy() + number
            response = Response([Tensor.from_numpy("y", y)], {"number": number})
            responder.send(response, final=end == "last" and number == count - 1)
        if end == "empty":
            responder.send(None, final=True)
        elif end != "last":
            raise NaiadError(Code(end), f"told to end with {end}")

    def close(self) -> None:
        pass


def _told(request: Request, more: Mapping[str, Parameter]) -> Response:
    served: Mapping[str, Parameter] = {
        "server.sequence_id": request.correlation_id,
        "server.sequence_start": request.sequence_start,
        "server.sequence_end": request.sequence_end,
        "server.priority": request.priority,
        "server.timeout": request.timeout_us,
    }
    return Response([request.inputs["x"].renamed("y")], {**request.parameters, **served, **more})


class TellModel(Model):
    """Nothing is shared."""

    def instance(self, placement: Placement) -> Instance:
        return TellInstance()

    def close(self) -> None:
        pass


class TellBackend(Backend):
    """No options."""

    def complete(self, spec: ModelSpec) -> Completion | None:
        return None

    def load(self, spec: ModelSpec) -> Model:
        return TellModel()


def install(folder: Path) -> Mapping[str, str]:
    """Make a package of it in `folder`. Returns the environment of a process that finds it."""
    record = folder / "tell-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: tell\nVersion: 1\n")
    (record / "entry_points.txt").write_text(f"[naiad.backends]\ntell = {__name__}:TellBackend\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def config(decoupled: bool = False, more: str = "") -> str:
    """Configuration of a model that takes FP32 of any length; `more` is added to it."""
    policy = "model_transaction_policy { decoupled: true }\n" if decoupled else ""
    return f"""
    backend: "tell"
    input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}
    output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
    {policy}{more}"""
