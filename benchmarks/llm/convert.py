"""SmolLM2's GGUF file as a Hugging Face folder in bfloat16, for engines that read no GGUF."""

from pathlib import Path

import torch
import transformers

from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.text.gguf_tokenizer import gguf_tokenizer

_NAMES = {
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


def convert(file: Path, folder: Path) -> None:
    """Write the folder: configuration, weights and tokenizer."""
    checkpoint = open_checkpoint(file)
    shape = checkpoint.architecture
    assert isinstance(shape, Architecture)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_position,
        rms_norm_eps=shape.norm_eps,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    state = {
        "model.embed_tokens.weight": checkpoint.weight("embed").float32(),
        "model.norm.weight": checkpoint.weight("norm").float32(),
    }
    for layer in range(len(shape.layers)):
        for ours, theirs in _NAMES.items():
            weight = checkpoint.weight(f"layers.{layer}.{ours}").float32()
            state[f"model.layers.{layer}.{theirs}.weight"] = weight
    tensors = {name: torch.tensor(array).to(torch.bfloat16) for name, array in state.items()}
    model.load_state_dict(tensors, strict=False)
    model.save_pretrained(folder)
    assert checkpoint.metadata is not None
    tokenizer = gguf_tokenizer(checkpoint.metadata)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.library).save_pretrained(folder)
