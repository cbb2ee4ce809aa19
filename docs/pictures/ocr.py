"""Draws what the example model ocr reads: the picture with its boxes, and beside it the texts.

    .venv/bin/python docs/pictures/ocr.py read.png photo.jpg

Needs the server of `make serve`, and Pillow and tritonclient, which `make test` installs. Without a
photo it makes a page of its own; so the picture of docs/pipelines.md was made.
"""

import io
import sys
from pathlib import Path

import numpy as np
import tritonclient.http
from PIL import Image, ImageDraw, ImageFont

SERVER = "localhost:8000"
COLOUR = (214, 40, 57)

LINES = [
    # text, x and y of its middle, size, turned by degrees
    ("NAIAD HARBOUR FERRIES", 320, 45, 34, 0),
    ("Sailings from pier 7", 150, 100, 22, 0),
    ("07:30, 09:15 and 11:45", 150, 135, 22, 0),
    ("no service in fog", 460, 130, 28, 14),
    ("Tickets on board, 4.50 each way", 175, 190, 18, 0),
    ("turned by mistake", 490, 220, 22, 180),
]


def main(target: Path, photo: Path | None = None) -> None:
    image = photo.read_bytes() if photo else page()
    texts, boxes = read(image)
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    joined = Image.new("RGB", (picture.width * 2, picture.height), "white")
    joined.paste(picture)
    pen = ImageDraw.Draw(joined)
    for text, box in zip(texts, boxes, strict=True):
        pen.polygon(box.ravel().tolist(), outline=COLOUR, width=2)
        # Where the text begins.
        pen.circle(box[0].tolist(), 4, fill=COLOUR)
        height = float(np.linalg.norm(box[3] - box[0]))
        place = (picture.width + float(box[:, 0].min()), float(box[:, 1].mean()))
        font = ImageFont.load_default(max(10, height * 0.55))
        pen.text(place, text.decode(), COLOUR, font, anchor="lm")
    joined.quantize(32).save(target, optimize=True)


def page() -> bytes:
    """A PNG with LINES."""
    picture = Image.new("RGB", (640, 256), (250, 248, 240))
    for text, x, y, size, degrees in LINES:
        layer = Image.new("L", picture.size)
        font = ImageFont.load_default(size)
        ImageDraw.Draw(layer).text((x, y), text, 255, font, anchor="mm")
        layer = layer.rotate(degrees, Image.Resampling.BICUBIC, center=(x, y))
        picture.paste((25, 40, 70), mask=layer)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def read(image: bytes) -> tuple[list[bytes], list[np.ndarray]]:
    """The texts on a picture, and the corners x, y [4, 2] of each."""
    client = tritonclient.http.InferenceServerClient(SERVER)
    tensor = tritonclient.http.InferInput("image", [1], "BYTES")
    result = client.infer("ocr", [tensor.set_data_from_numpy(np.array([image], object))])
    return list(result.as_numpy("text")), list(result.as_numpy("boxes"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
