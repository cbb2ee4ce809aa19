"""vLLM's CPU build. Arguments: THREADS FOLDER [eager]."""

import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

from vllm import LLM, SamplingParams

from benchmarks.llm.drivers.protocol import serve


def main() -> None:
    """Load the model and serve."""
    model = LLM(
        sys.argv[2],
        dtype="bfloat16",
        max_model_len=4096,
        enable_prefix_caching=False,
        enforce_eager=sys.argv[3:] == ["eager"],
        disable_log_stats=True,
    )

    def run(prompts: list[list[int]], output: int) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        begun = time.perf_counter()
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return time.perf_counter() - begun

    serve(run)


if __name__ == "__main__":
    main()
