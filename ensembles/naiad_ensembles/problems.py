"""One thing that is wrong with an ensemble, and where in its configuration it stands.

Knows the paths of the fields of `ensemble_scheduling`, and no lines: who reads files has those.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right.

    path: the field, such as `ensemble_scheduling.step[1].input_map["x"]`.
    message: what is wrong with it.  hint: what to do; empty if the message says it.
    """

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


def step_path(index: int, field: str = "", key: str | int | None = None) -> str:
    """The path of a step, of a field of it, or of the field's entry under a key or at a place."""
    path = f"ensemble_scheduling.step[{index}]" + (f".{field}" if field else "")
    if key is None:
        return path
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}[{_quoted(key)}]"


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)
