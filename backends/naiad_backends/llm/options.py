"""What one may choose about an engine: parameters of a model's configuration, by vLLM's names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """model: the folder or the GGUF file, if it is not in the version's folder.
    tokenizer: a folder whose tokenizer is used instead of the model's own.
    chat_template: a file with a template to use instead of the model's own.
    trust_request_chat_template: requests may bring a template of their own.
    load_format: `auto`, or `dummy` for random weights in the shape of config.json.
    dtype: of what is computed and of weights that are not quantized: `auto`, `float32`, `bfloat16`,
        `float16`. Auto is what the file has on a GPU, and what is fast on a CPU.
    kv_cache_dtype: `auto` or one of the same.
    max_model_len: tokens of prompt and answer together; 0 is what the model can.
    max_num_seqs: requests that run at once.
    max_num_batched_tokens: tokens that a step computes; 0 chooses for the device.
    block_size: tokens of a block of the KV cache; 0 chooses for the device.
    gpu_memory_utilization: the part of a GPU's memory that may be used.
    kv_cache_memory_bytes: of the KV cache; 0 chooses for the device.
    enable_prefix_caching: requests share what their prompts begin with.
    long_prefill_token_threshold: at most so many tokens of one prompt in a step while others run; 0
        is half of the budget.
    scheduling_policy: `fcfs`, or `priority`.
    max_num_queued_reqs: requests that wait; one more is refused. 0 for any number.
    max_num_queued_tokens: the same in tokens of prompts.
    max_logprobs: the most that a request may ask for; -1 for all of the vocabulary.
    enforce_eager: no CUDA graphs.
    cpu_kernels: `auto`, `native` (ours, which need a compiler or a wheel that has them) or `torch`.
    threads: of the engine on a CPU; 0 is one for each core.
    seed: of requests that bring none; 0 for a random one each time.
    """

    model: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    trust_request_chat_template: bool = False
    load_format: str = "auto"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 0
    block_size: int = 0
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int = 0
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: str = "fcfs"
    max_num_queued_reqs: int = 1024
    max_num_queued_tokens: int = 0
    max_logprobs: int = 20
    enforce_eager: bool = False
    cpu_kernels: str = "auto"
    threads: int = 0
    seed: int = 0
