"""Tiny random models of every family, made by the library that is our reference."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": 64,
}

Make = Callable[..., Any]

FAMILIES: Mapping[str, tuple[Make, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-biased": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama-linear": (transformers.LlamaConfig, {"rope_parameters": LINEAR}),
    "llama-head": (transformers.LlamaConfig, {"head_dim": 16, "num_key_value_heads": 1}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "mistral-window": (transformers.MistralConfig, {"sliding_window": 7}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2-yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "qwen2-window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 20},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {"head_dim": 16, "sliding_window": 7, "num_hidden_layers": 7, "query_pre_attn_scalar": 20},
    ),
    "phi3": (transformers.Phi3Config, {"sliding_window": None}),
    "phi3-window": (transformers.Phi3Config, {"sliding_window": 7}),
    "phi3-partial": (
        transformers.Phi3Config,
        {
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "phi3-long": (
        transformers.Phi3Config,
        {
            "sliding_window": None,
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 64,
        },
    ),
    "granite": (
        transformers.GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
}


def make(name: str, **changes: Any) -> Any:
    """A model with the same random weights each time; none of them is 0 or 1."""
    config, own = FAMILIES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**SIZES, **own, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().float()


def save(model: Any, folder: Path) -> Path:
    """As its author would publish it."""
    model.save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(model: Any, tokens: list[int]) -> Tensor:
    """[tokens, vocabulary]."""
    out: Tensor = model(torch.tensor([tokens])).logits[0]
    return out
