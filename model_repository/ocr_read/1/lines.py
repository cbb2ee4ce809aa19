"""Cuts lines of text out of a picture and makes text of what the recogniser says of them."""

import numpy as np
from PIL import Image

HEIGHT = 48
"""Of a line for the models, in pixels."""


def cut(picture, box):
    """The content of a box [4, 2] of Pillow's picture, as a picture that is HEIGHT high.

    A box that is much higher than wide has a text that runs up: it is turned to the right.
    """
    width, height = (max(1, round(size)) for size in size_of(box))
    # Pillow wants the corners counter-clockwise.
    line = picture.transform(
        (width, height),
        Image.Transform.QUAD,
        box[[0, 3, 2, 1]].ravel().tolist(),
        Image.Resampling.BICUBIC,
    )
    wide = max(1, round(HEIGHT * width / height))
    return line.resize((wide, HEIGHT), Image.Resampling.BICUBIC)


def size_of(box):
    """Width and height of a box [4, 2]."""
    sides = np.linalg.norm(np.roll(box, -1, axis=0) - box, axis=1)
    return max(sides[0], sides[2]), max(sides[1], sides[3])


def upright(box):
    """The box with its corners renamed if it is much higher than wide: its text runs up."""
    width, height = size_of(box)
    return np.roll(box, 1, axis=0) if height > 1.5 * width else box


def as_input(line, width):
    """picture -> FP32 [1, 3, HEIGHT, width]: B, G, R in -1...1, 0 behind its end. A wider line is
    squeezed."""
    if line.width > width:
        line = line.resize((width, HEIGHT), Image.Resampling.BICUBIC)
    planes = np.asarray(line, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    padded = np.zeros((1, 3, HEIGHT, width), np.float32)
    padded[0, :, :, : line.width] = planes / 127.5 - 1
    return padded


def decode(probabilities, characters):
    """CTC: [steps, characters + 1] -> the text and the mean probability of its characters.

    The best of each step, repetitions once; number 0 is none of them.
    """
    best = probabilities.argmax(axis=1)
    first = np.diff(best, prepend=0) != 0
    steps = np.flatnonzero(first & (best != 0))
    text = "".join(characters[n - 1] for n in best[steps])
    return text, float(probabilities[steps, best[steps]].mean()) if len(steps) else 0.0
