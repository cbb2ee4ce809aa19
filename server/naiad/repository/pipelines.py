"""What a step of an ensemble may say in config.yaml beyond Triton's fields: when, map, retries and
fallback. Their meaning is in docs/ensembles.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from naiad.repository.mistakes import Mistake, item, member

MOST_RETRIES = 10
MOST_ITEMS = 65_536


@dataclass(frozen=True, slots=True)
class StepMap:
    """How a step runs once for each item.  pad: None refuses outputs of different shapes."""

    over: tuple[str, ...] = ()
    as_batch: bool = False
    pad: int | float | None = None
    max_items: int = 1024


@dataclass(frozen=True, slots=True)
class StepExtras:
    """The four fields of one step.  fallback: models; None, as the last one, skips the step."""

    when: str = ""
    map: StepMap | None = None
    retries: int = 0
    fallback: tuple[str | None, ...] = ()


FIELDS = ("when", "map", "retries", "fallback")
"""Their names, in the order of `StepExtras`."""

_MAP_FIELDS = ("over", "as_batch", "pad", "max_items")

Report = Callable[[Mistake], None]


def read(fields: Mapping[str, yaml.Node], path: str, report: Report) -> StepExtras:
    """The extras of the step at `path` from their nodes; mistakes are reported."""
    reader = _Reader(path, report)
    return StepExtras(
        when=reader.text(fields.get("when")),
        map=reader.map(fields.get("map")),
        retries=reader.number("retries", fields.get("retries"), 0, 0, MOST_RETRIES),
        fallback=reader.fallback(fields.get("fallback")),
    )


class _Reader:
    """Reads the fields of one step."""

    def __init__(self, path: str, report: Report) -> None:
        self._path = path
        self._report = report

    def _wrong(self, field: str, node: yaml.Node, expected: str) -> None:
        place = member(self._path, field)
        line = node.start_mark.line + 1
        self._report(Mistake(place, f"must be {expected}", "see docs/ensembles.md", line))

    def text(self, node: yaml.Node | None) -> str:
        value = _value(node)
        if isinstance(value, str) or node is None:
            return value if isinstance(value, str) else ""
        if isinstance(value, bool):
            # YAML reads `true` so; as an expression it is Python's.
            return str(value)
        self._wrong("when", node, "an expression, written as a string")
        return ""

    def number(
        self, field: str, node: yaml.Node | None, default: int, least: int, most: int
    ) -> int:
        if node is None:
            return default
        value = _value(node)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._wrong(field, node, f"a whole number from {least} to {most}")
            return default
        return value

    def fallback(self, node: yaml.Node | None) -> tuple[str | None, ...]:
        value = [] if node is None else _value(node)
        good = isinstance(value, list) and all(
            (isinstance(one, str) and one) or (one is None and index == len(value) - 1)
            for index, one in enumerate(value)
        )
        if not good and node is not None:
            self._wrong("fallback", node, "a list of models, of which the last one may be null")
            return ()
        return tuple(value) if isinstance(value, list) else ()

    def map(self, node: yaml.Node | None) -> StepMap | None:
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            self._wrong("map", node, "fields such as { over: [crops] }")
            return None
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(getattr(key, "value", ""))
            if name in _MAP_FIELDS and name not in fields:
                fields[name] = value
            else:
                self._wrong(f"map.{name}", key, f"one of {', '.join(_MAP_FIELDS)}, given once")
        return StepMap(
            self._over(node, fields.get("over")),
            self._flag(fields.get("as_batch")),
            self._pad(fields.get("pad")),
            self.number("map.max_items", fields.get("max_items"), 1024, 1, MOST_ITEMS),
        )

    def _over(self, around: yaml.Node, node: yaml.Node | None) -> tuple[str, ...]:
        value = None if node is None else _value(node)
        if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
            self._wrong("map.over", node or around, "a list of ensemble tensors")
            return ()
        return tuple(value)

    def _flag(self, node: yaml.Node | None) -> bool:
        value = False if node is None else _value(node)
        if not isinstance(value, bool) and node is not None:
            self._wrong("map.as_batch", node, "true or false")
            return False
        return bool(value)

    def _pad(self, node: yaml.Node | None) -> int | float | None:
        value = None if node is None else _value(node)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        if node is not None and value is not None:
            self._wrong("map.pad", node, "a number")
        return None


def _value(node: yaml.Node | None) -> object:
    """What a node says as a plain value; something that no field takes if it says nothing plain."""
    if node is None:
        return None
    try:
        found: object = SafeConstructor().construct_object(node, deep=True)
    except (ConstructorError, ValueError, RecursionError):
        return object()
    return found


def step_paths(number: int) -> list[str]:
    """The paths of the steps of an ensemble with so many."""
    return [item("ensemble_scheduling.step", index) for index in range(number)]
