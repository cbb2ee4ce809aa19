"""Sequence controls that a step of an ensemble gives with its response: they hold for the steps
behind it, in the place of those that the client sent.

Of one request. Source: Triton's ensembles, where `sequence_id`, `sequence_start` and `sequence_end`
of a response's parameters do this.
"""

from collections.abc import Iterable, Mapping

from naiad_backends.api import Parameter, Request, Tensor

_NAMES = frozenset(("sequence_id", "sequence_start", "sequence_end"))


class Controls:
    """What has been given so far, by the tensors that it came with."""

    def __init__(self) -> None:
        # The tensor is kept so that no other one gets its id.
        self._given: dict[int, tuple[Tensor, Mapping[str, Parameter]]] = {}

    def of(self, tensors: Iterable[Tensor]) -> dict[str, Parameter]:
        """What holds for a step that reads these; empty if it is what the client sent."""
        found: dict[str, Parameter] = {}
        if self._given:
            for tensor in tensors:
                if id(tensor) in self._given:
                    found |= self._given[id(tensor)][1]
        return found

    def note(
        self,
        read: Iterable[Tensor],
        parameters: Mapping[str, Parameter],
        outputs: Iterable[Tensor],
    ) -> None:
        """A step that has read some tensors gave outputs with parameters."""
        if not (parameters or self._given):
            return
        found = self.of(read)
        found |= {name: value for name, value in parameters.items() if name in _NAMES}
        if found:
            self._given |= {id(tensor): (tensor, found) for tensor in outputs}


def take(request: Request, controls: Mapping[str, Parameter]) -> None:
    """Let a request have these controls instead of its own."""
    id = controls.get("sequence_id", request.correlation_id)
    if isinstance(id, int | str):
        request.correlation_id = id
    request.sequence_start = bool(controls.get("sequence_start", request.sequence_start))
    request.sequence_end = bool(controls.get("sequence_end", request.sequence_end))
