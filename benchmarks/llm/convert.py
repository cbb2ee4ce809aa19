"""SmolLM2's GGUF file as transformers' model, and as a folder in bfloat16 for engines that read no
GGUF."""

from pathlib import Path
from typing import Any

import torch
import transformers

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.text.gguf_tokenizer import gguf_tokenizer

_NAMES = {
    "embed": "embed_tokens",
    "norm": "norm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


def unpacked(checkpoint: Checkpoint) -> Any:
    """transformers' model with the same numbers, in float32."""
    shape = checkpoint.decoder
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_position,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    state = {}
    for name in checkpoint.names():
        layer, _, part = name.rpartition(".")
        place = f"model.{layer}." if layer else "model."
        array = checkpoint.weight(name).float32()
        state[f"{place}{_NAMES[part]}.weight"] = torch.from_numpy(array.copy())
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def convert(file: Path, folder: Path) -> None:
    """Write the folder: configuration, weights and tokenizer."""
    checkpoint = open_checkpoint(file)
    unpacked(checkpoint).to(torch.bfloat16).save_pretrained(folder)
    assert checkpoint.metadata is not None
    tokenizer = gguf_tokenizer(checkpoint.metadata)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.library).save_pretrained(folder)
