"""What Hugging Face folders call things: weights -> canonical names, activations -> ours."""

from collections.abc import Mapping

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.checkpoint.fields import Fields
from naiad_backends.llm.checkpoint.weights import Tensor, split

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}

ENCODER_NAMES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "attention.output.LayerNorm": "attn_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "mlp_norm",
}

EMBEDDINGS = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "embed_norm",
}


def activation_of(config: Fields, name: str, default: str) -> str:
    """Our name of an activation that a configuration names; UNSUPPORTED if we have it not."""
    kind = config.text(name, default)
    if kind not in ACTIVATIONS:
        raise unsupported(f"the activation '{kind}'", field=config.source)
    return ACTIVATIONS[kind]


def decoder_tensors(files: Mapping[str, Tensor], a: Architecture) -> dict[str, Tensor]:
    """By canonical names; fused ones taken apart."""
    names = dict(LAYER_NAMES)
    if a.post_norm:
        names |= {
            "post_attention_layernorm": "post_attn_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "post_mlp_norm",
        }
    else:
        names["post_attention_layernorm"] = "mlp_norm"
    ends = {"embed_tokens": "embed", "norm": "norm", "lm_head": "head"}
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    fused = {
        "self_attn.qkv_proj": (("q", queries), ("k", keys), ("v", keys)),
        "mlp.gate_up_proj": (("gate", a.intermediate_size), ("up", a.intermediate_size)),
    }
    tensors: dict[str, Tensor] = {}
    for name, tensor in files.items():
        place, module, end = _taken_apart(name, "layers.")
        if module in fused and place:
            tensors |= split(place, fused[module], end, tensor)
        elif place and module in names:
            tensors[f"{place}{names[module]}{end}"] = tensor
        elif not place and module.split(".")[-1] in ends and "vision" not in module:
            tensors[ends[module.split(".")[-1]]] = tensor
    return tensors


def encoder_tensors(files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By canonical names."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in files.items():
        place, module, end = _taken_apart(name, "encoder.layer.")
        module = module.removeprefix("bert.").removeprefix("roberta.")
        if place and module in ENCODER_NAMES:
            tensors[f"{place}{ENCODER_NAMES[module]}{end}"] = tensor
        elif module in EMBEDDINGS:
            tensors[EMBEDDINGS[module] + end] = tensor
    return tensors


def _taken_apart(name: str, layers: str) -> tuple[str, str, str]:
    """`model.layers.3.mlp.up_proj.bias` -> `layers.3.`, `mlp.up_proj`, `.bias`."""
    module, _, end = name.rpartition(".")
    end = "" if end == "weight" else f".{end}"
    before, found, behind = module.partition(layers)
    if not found or "vision" in before:
        return "", module, end
    number, _, module = behind.partition(".")
    return f"layers.{number}.", module, end
