"""Decodes images and scales them as ppocr_det wants them.

Written for Triton's interface; runs there, too.
"""

import io
import json

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, ImageOps

FORMATS = ["PNG", "JPEG", "WEBP"]
MOST_PIXELS = 50_000_000
"""A small file may unpack to very many."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, of which it only warns at first.


class TritonPythonModel:
    """One object for each instance."""

    def initialize(self, args):
        """Read the parameters of the configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.longest_side = int(parameters["longest_side"]["string_value"])

    def execute(self, requests):
        """A response for each picture; one that cannot be read spoils no other."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """`picture` and `x`, or what is wrong with the image."""
        image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[0]
        try:
            picture = decode(image)
        except Exception as error:  # Decoders raise anything when a file is broken.
            text = f"image cannot be read: {error}; send a whole file, one of {', '.join(FORMATS)}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("picture", np.array(picture)),
                pb_utils.Tensor("x", for_detection(picture, self.longest_side)),
            ]
        )


def decode(image):
    """bytes of a file -> Pillow's picture, RGB, upright, on white where it is transparent."""
    opened = Image.open(io.BytesIO(image), formats=FORMATS)
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MOST_PIXELS}")
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow's conversion cuts all above 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def for_detection(picture, longest_side):
    """picture -> FP32 [3, height, width]: B, G, R in -1...1, sizes multiples of 32."""
    scale = min(1, longest_side / max(picture.size))
    size = [max(32, round(side * scale / 32) * 32) for side in picture.size]
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32)
    planes = pixels[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(planes / 127.5 - 1)
