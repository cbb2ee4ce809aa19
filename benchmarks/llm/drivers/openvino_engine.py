"""OpenVINO GenAI's continuous batching. Arguments: THREADS MODEL."""

import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.llm.drivers.protocol import serve


def main() -> None:
    """Load the model and serve."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 512
    pipe = genai.ContinuousBatchingPipeline(
        sys.argv[2], scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(sys.argv[1])}
    )

    def run(prompts: list[list[int]], output: int) -> float:
        config = genai.GenerationConfig(
            max_new_tokens=output, min_new_tokens=output, ignore_eos=True, do_sample=False
        )
        tensors = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        begun = time.perf_counter()
        pipe.generate(tensors, [config] * len(tensors))
        return time.perf_counter() - begun

    serve(run)


main()
