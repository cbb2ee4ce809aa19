"""Pictures with a word on them, drawn from a font of five by seven dots."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
"""[height, width], from 0 for black to 1 for white."""

_FONT = {
    "A": (".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "D": ("####.", "#...#", "#...#", "#...#", "#...#", "#...#", "####."),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "I": (".###.", "..#..", "..#..", "..#..", "..#..", "..#..", ".###."),
    "N": ("#...#", "##..#", "#.#.#", "#..##", "#...#", "#...#", "#...#"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "V": ("#...#", "#...#", "#...#", "#...#", "#...#", ".#.#.", "..#.."),
}


def draw(word: str, height: int, width: int, top: int, left: int, dot: int) -> Picture:
    """A white picture with `word` in black.  dot: pixels that a dot of the font is wide."""
    gap = np.zeros((7, 1))
    glyphs = [np.array([[c == "#" for c in row] for row in _FONT[letter]]) for letter in word]
    dots = np.concatenate([part for glyph in glyphs for part in (glyph, gap)], axis=1)
    text = np.kron(dots, np.ones((dot, dot)))
    picture = np.ones((height, width))
    picture[top : top + text.shape[0], left : left + text.shape[1]] -= text
    return _blurred(picture)


def _blurred(picture: NDArray[Any]) -> Picture:
    """Each pixel as the mean of the nine around it: edges as a camera sees them."""
    height, width = picture.shape
    around = np.pad(picture, 1, mode="edge")
    parts = [around[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.asarray(np.mean(parts, axis=0), np.float32)


def as_input(picture: Picture) -> Picture:
    """[1, 3, height, width] in -1...1, as the PP-OCR models take it."""
    planes = np.broadcast_to((picture - 0.5) / 0.5, (1, 3, *picture.shape))
    return np.ascontiguousarray(planes, np.float32)
