"""A backend whose instances die and live again, and change their minds, when the test says so."""

from collections.abc import Callable, Sequence

from naiad_backends.api import (
    Backend,
    Completion,
    Done,
    Execution,
    Instance,
    InstanceState,
    Model,
    ModelSpec,
    Placement,
    RemoteInstance,
    Request,
    Responder,
    Response,
)

CONFIG = """
backend: "mortal"
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
instance_group { count: 2 kind: KIND_CPU }
"""
"""Of a model with two instances, which gives `y` = `x`."""


class Mortal(RemoteInstance):
    """An instance.

    why: it is dead, and so it is.  opinion: what it says when it is alive and asked.
    """

    def __init__(self) -> None:
        self.why = ""
        self.opinion = ""
        self.asked = 0
        self.listeners: list[Callable[[], None]] = []

    def turn(self, why: str) -> None:
        """Die, or live again if there is no reason not to."""
        self.restarts += bool(self.why) and not why
        self.why = why
        for listener in self.listeners:
            listener()

    @property
    def state(self) -> InstanceState:
        return InstanceState.DOWN if self.why else InstanceState.READY

    @property
    def window(self) -> int:
        return 1

    def trouble(self) -> str:
        return self.why

    async def unready(self) -> str:
        self.asked += 1
        return self.why or self.opinion

    def watch(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        done(None if self.why else self.execute(requests))

    def execute(self, requests: Sequence[Request]) -> Execution:
        return Execution([Response([r.inputs["x"].renamed("y")]) for r in requests])

    def stream(self, request: Request, responder: Responder) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class MortalBackend(Backend, Model):
    """instances: by the name of their model, all that were made."""

    def __init__(self) -> None:
        super().__init__({})
        self.instances: dict[str, list[Mortal]] = {}

    def complete(self, spec: ModelSpec) -> Completion | None:
        return None

    def load(self, spec: ModelSpec) -> Model:
        self.instances.setdefault(spec.name, [])
        return self

    def instance(self, placement: Placement) -> Instance:
        instance = Mortal()
        # The default name of an instance begins with its model's.
        self.instances[placement.name.partition("_")[0]].append(instance)
        return instance

    def close(self) -> None:
        pass
