"""`naiad graph`: an ensemble as a diagram in Mermaid's language, which viewers of Markdown draw.

Reads configurations only; the times come from a server, if one is named.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from naiad.repository.config import ModelConfig
from naiad.repository.layout import Repositories
from naiad.repository.scheduling import EnsembleStep
from naiad_backends.errors import invalid, unavailable

_SECONDS = 10.0


def mermaid(model: str, repositories: Sequence[Path], config_name: str, url: str) -> str:
    """The diagram of an ensemble: inputs, steps and outputs, with the tensors between them.

    url: of a server whose statistics tell how long each step's model takes on average; empty for
    none. Raises NOT_FOUND for an unknown model, INVALID_ARG for one that is no ensemble,
    UNAVAILABLE if the server does not answer.
    """
    folder = Repositories(repositories).find(model)
    config = ModelConfig.read(folder, config_name)
    steps = config.ensemble_steps()
    if not steps:
        raise invalid(f"model '{model}' is no ensemble", hint="name one with ensemble_scheduling")
    times = {step.model: _milliseconds(url, step.model) for step in steps} if url else {}
    message = config.message()
    inputs = [tensor.name for tensor in message.input]
    outputs = [tensor.name for tensor in message.output]
    return "\n".join(["flowchart LR", *_lines(steps, inputs, outputs, times)])


def _lines(
    steps: Sequence[EnsembleStep],
    inputs: Sequence[str],
    outputs: Sequence[str],
    times: Mapping[str, str],
) -> Iterator[str]:
    made = {name: f"in{number}" for number, name in enumerate(inputs)}
    for name, node in made.items():
        yield f"    {node}([{_text(name)}])"
    for number, step in enumerate(steps):
        made |= dict.fromkeys(step.outputs.values(), f"step{number}")
        yield f"    step{number}[{_text(_title(number, step, times))}]"
    for number, step in enumerate(steps):
        # Maps of a configuration have no order.
        for tensor in sorted(set(step.inputs.values())):
            yield f"    {made.get(tensor, 'unknown')} -->|{_text(tensor)}| step{number}"
    for number, name in enumerate(outputs):
        yield f"    out{number}([{_text(name)}])"
        yield f"    {made.get(name, 'unknown')} --> out{number}"


def _title(number: int, step: EnsembleStep, times: Mapping[str, str]) -> str:
    version = f" version {step.version}" if step.version > 0 else ""
    lines = [f"{number}: {step.model}{version}"]
    extras = step.extras
    if extras.when:
        lines.append(f"when {extras.when}")
    if extras.map is not None:
        lines.append(f"for each item of {', '.join(extras.map.over)}")
    if extras.retries:
        lines.append(f"{extras.retries} retries")
    if extras.fallback:
        lines.append("else " + ", ".join(name or "nothing" for name in extras.fallback))
    if times.get(step.model):
        lines.append(times[step.model])
    return "<br/>".join(lines)


def _text(text: str) -> str:
    """In quotes, so that nothing in it means anything to Mermaid."""
    return '"' + text.replace('"', "#quot;") + '"'


def _milliseconds(url: str, model: str) -> str:
    """The average of a model's answered requests; empty if there was none."""
    place = f"{url.rstrip('/')}/v2/models/{urllib.parse.quote(model, safe='')}/stats"
    if not place.startswith(("http://", "https://")):
        raise invalid(f"'{url}' is no http address", field="--url")
    try:
        with urllib.request.urlopen(place, timeout=_SECONDS) as answer:
            stats = json.load(answer)["model_stats"]
    except (OSError, ValueError, KeyError) as error:
        raise unavailable(f"{place} does not answer: {error}", hint="check --url") from error
    success = [one["inference_stats"]["success"] for one in stats]
    count = sum(one["count"] for one in success)
    return f"{sum(one['ns'] for one in success) / count / 1e6:.3g} ms" if count else ""
