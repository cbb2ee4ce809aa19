"""What a configuration says of instances, as plain values: one for each that may get work.

Knows the messages of the configuration; nothing of how an instance is made or scheduled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from naiad.repository.mistakes import Mistake, item
from naiad_backends.api import Placement
from naiad_proto import model_config_pb2 as pb

_KINDS: dict[int, Literal["CPU", "GPU", "MODEL"]] = {
    pb.ModelInstanceGroup.KIND_AUTO: "CPU",
    pb.ModelInstanceGroup.KIND_CPU: "CPU",
    pb.ModelInstanceGroup.KIND_GPU: "GPU",
    pb.ModelInstanceGroup.KIND_MODEL: "MODEL",
}


@dataclass(frozen=True, slots=True)
class Resource:
    """Tokens that each execution needs.

    everywhere: they are the machine's, not the device's.  path: of the field.
    """

    name: str
    count: int
    everywhere: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """One instance.

    resources, priority: for the rate limiter; an instance of priority 2 runs half as often as one
        of 1.
    kind: equal for instances that differ in nothing but their name.
    """

    placement: Placement
    resources: tuple[Resource, ...] = ()
    priority: int = 1
    kind: bytes = b""


def instances(config: pb.ModelConfig) -> tuple[InstancePlan, ...]:
    """All instances of a configuration that is filled in, so none of passive groups."""
    return tuple(
        plan
        for index, group in enumerate(config.instance_group)
        if not group.passive and group.kind in _KINDS
        for plan in _group(group, item("instance_group", index))
    )


def _group(group: pb.ModelInstanceGroup, path: str) -> Iterator[InstancePlan]:
    kind = _KINDS[group.kind]
    limits = f"{path}.rate_limiter"
    resources = tuple(
        Resource(one.name, one.count, getattr(one, "global"), f"{limits}.resources[{n}]")
        for n, one in enumerate(group.rate_limiter.resources)
        if one.count
    )
    priority = group.rate_limiter.priority or 1
    devices = [
        device for device in (group.gpus if kind == "GPU" else (0,)) for _ in range(group.count)
    ]
    for index, device in enumerate(devices):
        placement = Placement(f"{group.name}_{index}", kind, device)
        yield InstancePlan(placement, resources, priority, _likeness(group, device))


def _likeness(group: pb.ModelInstanceGroup, device: int) -> bytes:
    """All that a group says of an instance but its name."""
    plain = pb.ModelInstanceGroup()
    plain.CopyFrom(group)
    plain.name, plain.count = "", 1
    plain.gpus[:] = [device]
    return plain.SerializeToString(deterministic=True)


# -- rules


def mistakes(config: pb.ModelConfig) -> Iterator[Mistake]:
    """Every break of a rule about the rate limiter."""
    scopes: dict[str, bool] = {}
    for index, group in enumerate(config.instance_group):
        names: set[str] = set()
        for place, resource in enumerate(group.rate_limiter.resources):
            path = item(f"{item('instance_group', index)}.rate_limiter.resources", place)
            everywhere = getattr(resource, "global")
            if not resource.name:
                yield Mistake(f"{path}.name", "is missing")
            elif resource.name in names:
                yield Mistake(f"{path}.name", f"'{resource.name}' is used twice", "keep one")
            elif scopes.setdefault(resource.name, everywhere) != everywhere:
                yield Mistake(
                    f"{path}.global",
                    f"'{resource.name}' is global in one place and not in another",
                    "make them equal, or rename one",
                )
            names.add(resource.name)
