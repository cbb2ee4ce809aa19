"""Writes models of transformers as GGUF files, as llama.cpp's converter would."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}


def write_gguf(model: Any, path: Path, kind: str = "F32") -> Path:
    """kind: the type of the matrices; they must have room for its blocks."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _metadata(writer, config)
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = permuted(array, heads)
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        _add(writer, _renamed(name, architecture.startswith("gemma")), array, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(array: Array, heads: int) -> Array:
    """Halves of each head become neighbours."""
    parts = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(array.shape))


def _add(writer: gguf.GGUFWriter, name: str, array: Array, kind: str) -> None:
    if kind == "F32" or array.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
        return
    quantized = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(array, quantized), raw_dtype=quantized)


def _renamed(name: str, gemma: bool) -> str:
    module, _, end = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{end}"
    number, _, module = module.removeprefix("model.layers.").partition(".")
    after = "post_attention_norm" if gemma else "ffn_norm"
    names = {**LAYER, "post_attention_layernorm": after}
    return f"blk.{number}.{names[module]}.{end}"


def _metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _rope(writer, config, head_dim)
    writer.add_eos_token_id(2)


def _rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    if "full_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    dimensions = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(dimensions)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "llama3":
        base = rope["rope_theta"] ** (-np.arange(0, dimensions, 2) / dimensions)
        scaled, _ = _scaled(config, kind)
        writer.add_tensor("rope_freqs.weight", (base / scaled).astype(np.float32))
    if kind == "longrope":
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_scaled(config, kind)[1])


def _scaled(config: Any, kind: str) -> tuple[Array, float]:
    """Frequencies and the scale of cosines by transformers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.numpy(), scale
