"""Which requests are equal: a hash over all that a model's answer may depend on.

What the server itself does with an answer, such as picking the best classes, is not in it; nor are
the request's id, priority and timeout.
"""

import math
import os
from hashlib import blake2b

import orjson

from naiad.core.cache.store import wire_size
from naiad.repository.config import ModelConfig
from naiad.repository.watch import Fingerprint, digest, fingerprint
from naiad_backends.api import ModelSpec, Request, Tensor
from naiad_backends.datatypes import DATATYPES

SIZE = 32
"""Bytes of keys and identities."""

_ELEMENT = 64
"""Bytes that an element of BYTES counts, while nobody knows: encoding one takes about as long as
hashing so many."""


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

    def of(self, request: Request) -> bytes:
        """The key of one request, which fits the model."""
        inputs = request.inputs
        tensors = [inputs[name] for name in (sorted(inputs) if len(inputs) > 1 else inputs)]
        head: list[object] = [
            request.outputs,
            request.correlation_id,
            request.sequence_start,
            request.sequence_end,
            # JSON tells neither NaN from infinity nor knows integers of any size, repr does.
            repr(sorted(request.parameters.items())) if request.parameters else "",
        ]
        wires = []
        for tensor in tensors:
            wire = tensor.wire()
            wires.append(wire)
            head += (tensor.name, tensor.datatype, tensor.shape, wire_size(wire))
        # A list ends with its bracket, and it tells the sizes of the bytes that follow: two
        # different requests cannot give the same bytes to the hash.
        state = self._start.copy()
        state.update(orjson.dumps(head))
        for wire in wires:
            state.update(wire)
        return state.digest()


def weight(request: Request) -> int:
    """About how many bytes `Keys.of` has to hash, or to encode before."""
    return sum([_weight(tensor) for tensor in request.inputs.values()])


def _weight(tensor: Tensor) -> int:
    if tensor.encoded:
        return wire_size(tensor.wire())
    return math.prod(tensor.shape) * (DATATYPES[tensor.datatype].size or _ELEMENT)
