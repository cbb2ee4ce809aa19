"""The inputs and outputs of the models of this backend, as their configuration has them."""

from naiad_backends import generation
from naiad_backends.api import Completion, TensorSpec

_INPUTS = (
    TensorSpec(generation.TEXT_INPUT, "BYTES", (1,), optional=True),
    TensorSpec(generation.INPUT_IDS, "INT64", (-1,), optional=True),
    TensorSpec(generation.CHAT, "BYTES", (1,), optional=True),
    TensorSpec(generation.STREAM, "BOOL", (1,), optional=True),
    TensorSpec(generation.SAMPLING_PARAMETERS, "BYTES", (1,), optional=True),
    TensorSpec(generation.EXCLUDE_INPUT, "BOOL", (1,), optional=True),
    *(TensorSpec(flag, "BOOL", (1,), optional=True) for flag in generation.RETURN_FLAGS),
)

_OUTPUTS = (
    TensorSpec(generation.TEXT_OUTPUT, "BYTES", (-1,)),
    TensorSpec(generation.INDEX, "INT32", (-1,)),
    TensorSpec(generation.FINISH_REASON, "BYTES", (-1,)),
    TensorSpec(generation.STOP_REASON, "BYTES", (-1,)),
    TensorSpec(generation.OUTPUT_IDS, "BYTES", (-1,)),
    TensorSpec(generation.LOGPROBS, "BYTES", (-1,)),
    TensorSpec(generation.PROMPT_LOGPROBS, "BYTES", (1,)),
    TensorSpec(generation.CUMULATIVE_LOGPROB, "FP32", (-1,)),
    TensorSpec(generation.NUM_INPUT_TOKENS, "UINT32", (1,)),
    TensorSpec(generation.NUM_CACHED_TOKENS, "UINT32", (1,)),
    TensorSpec(generation.NUM_OUTPUT_TOKENS, "UINT32", (-1,)),
)

GENERATOR = Completion(_INPUTS, _OUTPUTS, dynamic_batching=False, decoupled=True)


def embedder(dimensions: int) -> Completion:
    """What a model has that makes vectors with so many numbers: batches of texts or of tokens.

    Requests do not wait for each other: the engine makes its own batches.
    """
    return Completion(
        (
            TensorSpec(generation.TEXT_INPUT, "BYTES", (1,), optional=True),
            TensorSpec(generation.INPUT_IDS, "INT64", (-1,), optional=True),
        ),
        (
            TensorSpec(generation.EMBEDDING, "FP32", (dimensions,)),
            TensorSpec(generation.NUM_INPUT_TOKENS, "UINT32", (1,)),
        ),
        max_batch_size=MOST_TEXTS,
        dynamic_batching=False,
    )


MOST_TEXTS = 1024
"""Of one request to an embedding model whose configuration does not say."""
