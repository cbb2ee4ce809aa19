"""Reads the lines of a picture: finds them, cuts them out, and asks other models about each.

Each line is a request of its own to ppocr_cls and ppocr_rec. All are sent at once, so the server
forms batches of them and of the lines of other pictures. Written for Triton's interface; runs
there, too, with those models beside it.
"""

import asyncio
import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from PIL import Image

from . import boxes, lines

DIRECTION_WIDTH = 192
SURE = 0.9
"""Probability from which a line is taken to stand on its head."""
WIDTHS = range(160, 3201, 160)
"""Lines are padded to one of them, so that many have the same shape; longer ones are squeezed."""


class Refused(Exception):
    """A model that was asked gave an error."""

    def __init__(self, model, error):
        super().__init__(model)
        self.error = pb_utils.TritonError(f"{model}: {error.message()}", error.code())


class TritonPythonModel:
    """One object for each instance."""

    def initialize(self, args):
        """Read the parameters and the list of characters."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.least_score = float(parameters["least_score"]["string_value"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.characters = read_characters(os.path.join(folder, "recogniser.onnx"))

    async def execute(self, requests):
        """A response for each picture."""
        return await asyncio.gather(*[self.answer(request) for request in requests])

    async def answer(self, request):
        """`text`, `boxes` and `scores`, or the error of a model that was asked."""
        picture = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy()
        (probabilities,) = pb_utils.get_input_tensor_by_name(request, "map").as_numpy()
        height, width = picture.shape[:2]
        found = boxes.find(probabilities) * (np.array((width, height)) / probabilities.shape[::-1])
        found = [lines.upright(box) for box in found.clip(0, (width, height))]
        image = Image.fromarray(picture)
        try:
            read = await asyncio.gather(*[self.read(image, box) for box in found])
        except Refused as refused:
            return pb_utils.InferenceResponse(error=refused.error)
        kept = [line for line in read if line[0] and line[2] >= self.least_score]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text", np.array([text.encode() for text, *_ in kept], object)),
                pb_utils.Tensor(
                    "boxes", np.array([box for _, box, _ in kept], np.float32).reshape(-1, 4, 2)
                ),
                pb_utils.Tensor("scores", np.array([score for *_, score in kept], np.float32)),
            ]
        )

    async def read(self, picture, box):
        """The text in a box, the box with the corner first where the text begins, the score."""
        line = lines.cut(picture, box)
        pixels = lines.as_input(line, DIRECTION_WIDTH)
        direction = await ask("ppocr_cls", pixels, "save_infer_model/scale_0.tmp_1")
        if direction[1] > SURE:
            line, box = line.transpose(Image.Transpose.ROTATE_180), np.roll(box, 2, axis=0)
        width = next((width for width in WIDTHS if width >= line.width), WIDTHS[-1])
        probabilities = await ask("ppocr_rec", lines.as_input(line, width), "fetch_name_0")
        text, score = lines.decode(probabilities, self.characters)
        return text, box, score


async def ask(model, pixels, output):
    """A model's output for one line, without the batch dimension. Raises Refused."""
    request = pb_utils.InferenceRequest(
        model_name=model, requested_output_names=[output], inputs=[pb_utils.Tensor("x", pixels)]
    )
    answer = await request.async_exec()
    if answer.has_error():
        raise Refused(model, answer.error())
    return pb_utils.get_output_tensor_by_name(answer, output).as_numpy()[0]


def read_characters(path):
    """All that the recogniser knows, from the metadata of its file; last comes the space."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [*session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
