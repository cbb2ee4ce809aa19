"""What `naiad serve` prints when it is ready: the URLs, the models, a first request to paste."""

from naiad.app import Server
from naiad_backends.api import ModelSpec
from naiad_backends.datatypes import DATATYPES
from naiad_backends.generation import TEXT_INPUT


def banner(server: Server, addresses: dict[str, str]) -> str:
    """The text, one address a line in a form that scripts can read: `http://...`, `grpc://...`, or
    with TLS `https://...`, `grpcs://...`."""
    served = server.dataplane.statistics()
    lines = ["", "Naiad is ready."]
    lines += [f"  {_url(protocol, address)}" for protocol, address in addresses.items()]
    names = sorted({model.name for model in served})
    lines += ["", f"Models: {', '.join(names) or 'none yet'}"]
    if (curl := _curl(server, addresses)) is not None:
        example = next((m.spec for m in served if _small(m.spec)), None)
        lines += ["", "A first request:"]
        lines += [_request(curl, example) if example else _metadata(curl)]
    return "\n".join([*lines, ""])


def _url(protocol: str, address: str) -> str:
    if protocol == "metrics":
        return f"metrics at http://{address}/metrics"
    return f"{protocol}://{address}"


def _curl(server: Server, addresses: dict[str, str]) -> str | None:
    """How anybody may call the HTTP port; None if nobody may without a certificate."""
    if "http" in addresses:
        return f"curl http://{addresses['http']}"
    if server.http_tls is not None and not server.http_tls.roots and "https" in addresses:
        # Without a look at the certificate, of which curl knows neither the root nor the name.
        return f"curl -k https://{addresses['https']}"
    return None


def _small(spec: ModelSpec) -> bool:
    """True if a request with one number in each input fits the model, so that it can be pasted."""
    if spec.decoupled:
        return _writes(spec)
    return all(
        tensor.datatype not in ("FP16", "BF16") and all(dim in (-1, 1) for dim in tensor.dims)
        for tensor in spec.inputs
    )


def _writes(spec: ModelSpec) -> bool:
    """Whether it writes text."""
    required = {tensor.name for tensor in spec.inputs if not tensor.optional}
    return TEXT_INPUT in {t.name for t in spec.inputs} and required <= {TEXT_INPUT}


def _request(curl: str, spec: ModelSpec) -> str:
    if spec.decoupled:
        members = f'{{"{TEXT_INPUT}":"The sea is"}}'
        return f"  {curl}/v2/models/{spec.name}/generate \\\n    -d '{members}'"
    inputs = ",".join(
        f'{{"name":"{tensor.name}","datatype":"{tensor.datatype}",'
        f'"shape":{[1] * (len(tensor.dims) + bool(spec.max_batch_size))},'
        f'"data":[{_VALUES[DATATYPES[tensor.datatype].numpy.kind]}]}}'
        for tensor in spec.inputs
    )
    return f"  {curl}/v2/models/{spec.name}/infer \\\n    -d '{{\"inputs\":[{inputs}]}}'"


_VALUES = {"b": "true", "i": "1", "u": "1", "f": "1.5", "O": '"text"'}


def _metadata(curl: str) -> str:
    return f"  {curl}/v2"
