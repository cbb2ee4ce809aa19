"""Which requests are equal: a hash over all that a model's answer may depend on.

What the server itself does with an answer, such as picking the best classes, is not in it; nor are
the request's id, priority and timeout.
"""

import os
from collections.abc import Iterable
from hashlib import blake2b

import orjson

from naiad.core.cache.store import wire_size
from naiad.repository.config import ModelConfig
from naiad.repository.watch import Fingerprint, digest, fingerprint
from naiad_backends.api import Buffer, ModelSpec, Request

SIZE = 32
"""Bytes of keys and identities."""


def own_identity() -> bytes:
    """An identity that no other loaded version has, in this process or another."""
    return os.urandom(SIZE)


def common_identity(config: ModelConfig, spec: ModelSpec, before: Fingerprint) -> bytes:
    """The identity that a version with the same files and configuration has on every server.

    before: its folder before the load. If the files have changed since, nobody knows which of them
    the model has, and the identity is its own. Reads all files, so it is for a loader thread.
    """
    folder, version = spec.path.parent, str(spec.version)
    whole = blake2b(digest_size=SIZE)
    for text in (spec.name, version, config.to_text()):
        data = text.encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    try:
        whole.update(digest(folder, version))
    except OSError:
        return own_identity()
    return whole.digest() if fingerprint(folder) == before else own_identity()


class Keys:
    """The keys of requests to the version with this identity."""

    def __init__(self, identity: bytes) -> None:
        self._start = blake2b(digest_size=SIZE, key=identity)

    def of(self, parts: Iterable[Buffer]) -> bytes:
        """The key of a request with these parts."""
        state = self._start.copy()
        for part in parts:
            state.update(part)
        return state.digest()


def key_parts(request: Request) -> tuple[list[Buffer], int]:
    """What the key of a request, which fits the model, is made from, and how many bytes of tensors
    are in it."""
    inputs = request.inputs
    head: list[object] = [
        request.outputs,
        request.correlation_id,
        request.sequence_start,
        request.sequence_end,
        # JSON tells neither NaN from infinity nor knows integers of any size, repr does.
        repr(sorted(request.parameters.items())) if request.parameters else "",
    ]
    # A list ends with its bracket, and it tells the sizes of the bytes that follow: two different
    # requests cannot give the same bytes to the hash.
    parts: list[Buffer] = [b""]
    total = 0
    for name in sorted(inputs) if len(inputs) > 1 else inputs:
        tensor = inputs[name]
        wire = tensor.wire()
        size = wire_size(wire)
        head += (name, tensor.datatype, tensor.shape, size)
        parts.append(wire)
        total += size
    parts[0] = orjson.dumps(head)
    return parts, total
