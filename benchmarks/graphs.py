"""Changes of a model's ONNX file that let every server be sent the same request.

Knows nothing of servers and requests.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx.helper import make_node
from onnx.numpy_helper import from_array


def without_state(source: Path, target: Path) -> None:
    """silero-vad as a function of the sound alone, [N, 576] -> [N, 1], written to `target`.

    The graph itself makes what else it is given: the state, zeros for each of the N, and the rate
    of 16 kHz. It no longer gives the new state.
    """
    model = onnx.load(source)
    graph = model.graph
    sound, output = graph.input[0], graph.output[0]
    for kept, tensors in ((sound, graph.input), (output, graph.output)):
        del tensors[:]
        tensors.append(kept)
    constants = {"two": [2], "width": [128], "zero": [0], "sr": 16000}
    names = {name: name if name == "sr" else f"stateless_{name}" for name in constants}
    graph.initializer.extend(
        from_array(np.array(value, np.int64), names[name]) for name, value in constants.items()
    )
    made = [
        make_node("Shape", [sound.name], ["stateless_shape"]),
        make_node("Gather", ["stateless_shape", names["zero"]], ["stateless_batch"]),
        make_node(
            "Concat",
            [names["two"], "stateless_batch", names["width"]],
            ["stateless_state"],
            axis=0,
        ),
        make_node("ConstantOfShape", ["stateless_state"], ["state"]),  # FP32 zeros
    ]
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
