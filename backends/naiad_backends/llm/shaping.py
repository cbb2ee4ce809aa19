"""What a request may ask of vectors: how much of a text counts, and how many dimensions they have.

Reads parameters, by vLLM's names. Knows no queue and no engine.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.errors import NaiadError, invalid
from naiad_backends.llm.checkpoint.architecture import Encoder

TRUNCATE = "truncate_prompt_tokens"
_SIDE = "truncation_side"
_DIMENSIONS = "dimensions"
_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Shaping:
    """What one request asks for.

    most: tokens of a text; None for all.  left: the first ones go, instead of the last.
    dimensions: of the vectors; 0 for as many as the model gives.
    """

    most: int | None
    left: bool
    dimensions: int

    def cut(self, tokens: Sequence[int], special: Collection[int]) -> Sequence[int]:
        """As many tokens as are wanted; special ones stay at the end where others go."""
        if self.most is None or len(tokens) <= self.most:
            return tokens
        facing = tokens if self.left else tokens[::-1]
        kept = 0
        while kept < self.most and facing[kept] in special:
            kept += 1
        cut = [*facing[:kept], *facing[len(tokens) - self.most + kept :]]
        return cut if self.left else cut[::-1]

    def shorten(self, vectors: npt.NDArray[np.float32], normalize: bool) -> npt.NDArray[np.float32]:
        """The first numbers of each vector [texts, n]. normalize: vectors have the length 1."""
        if self.dimensions in (0, vectors.shape[1]):
            return vectors
        vectors = vectors[:, : self.dimensions]
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return np.ascontiguousarray(vectors)


WHOLE = Shaping(most=None, left=False, dimensions=0)
"""All of a text, and all of its vector."""


def read(parameters: Mapping[str, Any], encoder: Encoder, longest: int) -> Shaping:
    """What the parameters of a request say. longest: tokens of a text that the model takes.

    Raises INVALID_ARG, naming the parameter.
    """
    most = parameters.get(TRUNCATE)
    if most is not None and (type(most) is not int or most == 0 or most < -1):
        raise invalid(
            f"{most!r} is no number of tokens", field=TRUNCATE, hint="-1 is as many as fit"
        )
    side = parameters.get(_SIDE, "right")
    if side not in _SIDES:
        raise invalid(f"{side!r} is no side", field=_SIDE, hint=f"use {' or '.join(_SIDES)}")
    dimensions = parameters.get(_DIMENSIONS)
    if dimensions is not None:
        _check_dimensions(dimensions, encoder)
    return Shaping(longest if most == -1 else most, side == "left", dimensions or 0)


def _check_dimensions(dimensions: object, encoder: Encoder) -> None:
    if type(dimensions) is int and dimensions in (encoder.hidden_size, *encoder.dimensions):
        return
    raise invalid(
        f"the model does not give {dimensions!r} dimensions",
        field=_DIMENSIONS,
        hint=f"it gives {_told(encoder)}",
    )


def _told(encoder: Encoder) -> str:
    size, shorter = encoder.hidden_size, encoder.dimensions
    if len(shorter) >= size - 1:
        return f"1 to {size}"
    return ", ".join(map(str, sorted({*shorter, size})))


def too_long(count: int | str, longest: int) -> NaiadError:
    """The error for a text of so many tokens, or of none."""
    return invalid(
        f"a text has {count} tokens, and the model takes 1 to {longest}",
        field="text_input",
        hint=f"shorten it, or set {TRUNCATE} to -1",
    )
