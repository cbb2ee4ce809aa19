"""config.json of a decoder -> Architecture. The families differ here and nowhere else."""

from collections.abc import Callable, Mapping
from typing import Any

from naiad_backends.llm.checkpoint.architecture import MOST_LAYERS, Architecture, Layer, Rope
from naiad_backends.llm.checkpoint.fields import MOST, Fields
from naiad_backends.llm.checkpoint.huggingface_names import activation_of
from naiad_backends.llm.checkpoint.rope import rope_of


def decoder_of(config: Fields, kind: str) -> Architecture:
    """kind: one of `DECODERS`."""
    return DECODERS[kind](config, _common(config, kind))


def _common(config: Fields, kind: str) -> dict[str, Any]:
    """What all decoders say in the same way."""
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    head_dim = config.integer("head_dim", hidden // heads)
    count = config.integer("num_hidden_layers")
    if count > MOST_LAYERS:
        raise config.wrong("num_hidden_layers", f"at most {MOST_LAYERS}", count)
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of {heads}", kv_heads)
    return {
        "name": kind,
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config.integer("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "layers": tuple(map(Layer, windows(config, count))),
        "ropes": (_rope(config, head_dim),),
        "max_position": _longest(config),
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "activation": activation_of(config, "hidden_act", "silu"),
        "attention_scale": head_dim**-0.5,
        "tied": config.flag("tie_word_embeddings", False),
    }


def windows(config: Fields, count: int, default: list[str] | None = None) -> list[int]:
    """How far back each layer sees. default: `layer_types` where the configuration has none."""
    kinds = config.get("layer_types")
    kinds = default if kinds is None else kinds
    if kinds is None:
        return [0] * count
    known = {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) != count or not set(map(str, kinds)) <= known:
        raise config.wrong("layer_types", f"{count} of {sorted(known)}", kinds)
    if "sliding_attention" not in kinds:
        return [0] * count
    window = config.integer("sliding_window")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def _rope(config: Fields, head_dim: int, part: str = "") -> Rope:
    """rope_parameters of transformers 5, or rope_scaling and rope_theta of before.

    part: which layers' parameters, where they differ.
    """
    scaling = config.part("rope_parameters")
    if part and part in scaling.values:
        scaling = scaling.part(part)
    if not scaling.values:
        scaling = config.part("rope_scaling")
    original = config.get("original_max_position_embeddings")
    if original is not None:
        scaling = Fields(
            {"original_max_position_embeddings": original, **scaling.values}, scaling.source
        )
    fraction = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dimensions = int(head_dim * fraction)
    if dimensions % 2 or not 0 < dimensions <= head_dim:
        raise config.wrong("partial_rotary_factor", f"an even part of {head_dim}", fraction)
    theta = config.number("rope_theta", 10000.0, above=1)
    return rope_of(scaling, theta, dimensions, config.integer("max_position_embeddings", 2048))


def _longest(config: Fields) -> int:
    """YaRN stretches a context that config.json gives unstretched."""
    longest = config.integer("max_position_embeddings", 2048)
    for name in ("rope_parameters", "rope_scaling"):
        scaling = config.part(name)
        if "yarn" in (scaling.get("rope_type"), scaling.get("type")) and scaling.get("factor"):
            original = scaling.integer("original_max_position_embeddings", longest)
            stretched = original * scaling.number("factor", above=0)
            longest = max(longest, int(min(stretched, MOST - 1)))
    return longest


def _llama(config: Fields, common: dict[str, Any]) -> Architecture:
    biased = config.flag("attention_bias", False)
    mlp = config.flag("mlp_bias", False)
    return Architecture(**common | {"qkv_bias": biased, "output_bias": biased, "mlp_bias": mlp})


def _mistral(config: Fields, common: dict[str, Any]) -> Architecture:
    return Architecture(**common | {"layers": _all_windows(config, common)})


def _all_windows(config: Fields, common: dict[str, Any]) -> tuple[Layer, ...]:
    """Every layer has the window, if there is one."""
    sliding = config.get("sliding_window") is not None
    kinds = ["sliding_attention" if sliding else "full_attention"] * len(common["layers"])
    return tuple(map(Layer, windows(config, len(kinds), kinds)))


def _qwen2(config: Fields, common: dict[str, Any]) -> Architecture:
    return Architecture(**common | {"layers": _upper_windows(config, common), "qkv_bias": True})


def _qwen3(config: Fields, common: dict[str, Any]) -> Architecture:
    biased = config.flag("attention_bias", False)
    own = {"qk_norm": True, "qkv_bias": biased, "output_bias": biased}
    return Architecture(**common | own | {"layers": _upper_windows(config, common)})


def _upper_windows(config: Fields, common: dict[str, Any]) -> tuple[Layer, ...]:
    """The layers from max_window_layers on have the window, if it is in use."""
    count = len(common["layers"])
    if not config.flag("use_sliding_window", False):
        return tuple(Layer() for _ in range(count))
    full = config.integer("max_window_layers", count, least=0)
    kinds = ["sliding_attention" if i >= full else "full_attention" for i in range(count)]
    return tuple(map(Layer, windows(config, count, kinds)))


def _gemma(config: Fields, common: dict[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    return common | {
        "norm_offset": 1.0,
        "post_norm": True,
        "activation": activation_of(config, "hidden_activation", "gelu_pytorch_tanh"),
        "embedding_scale": common["hidden_size"] ** 0.5,
        "attention_scale": config.number("query_pre_attn_scalar", 256.0, above=0) ** -0.5,
        "score_softcap": config.number("attn_logit_softcapping", 0.0),
        "logit_softcap": config.number("final_logit_softcapping", 0.0),
        "tied": config.flag("tie_word_embeddings", True),
    }


def _gemma2(config: Fields, common: dict[str, Any]) -> Architecture:
    count = len(common["layers"])
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    layers = tuple(map(Layer, windows(config, count, kinds)))
    return Architecture(**_gemma(config, common) | {"layers": layers})


def _gemma3(config: Fields, common: dict[str, Any]) -> Architecture:
    count, head_dim = len(common["layers"]), common["head_dim"]
    every = config.integer("sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    local = Fields({"rope_theta": config.number("rope_local_base_freq", 10000.0)}, config.source)
    if "sliding_attention" in config.part("rope_parameters").values:
        near = _rope(config, head_dim, "sliding_attention")
    else:
        near = rope_of(local, 10000.0, head_dim, common["max_position"])
    layers = (Layer(window, 1 if window else 0) for window in windows(config, count, kinds))
    ropes = (_rope(config, head_dim, "full_attention"), near)
    own = {"qk_norm": True, "layers": tuple(layers), "ropes": ropes}
    return Architecture(**_gemma(config, common) | own)


def _granite(config: Fields, common: dict[str, Any]) -> Architecture:
    own = {
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "residual_scale": config.number("residual_multiplier", 1.0),
        "attention_scale": config.number("attention_multiplier", 1.0),
        "logit_scale": 1 / config.number("logits_scaling", 1.0, above=0),
    }
    return _llama(config, common | own)


DECODERS: Mapping[str, Callable[[Fields, dict[str, Any]], Architecture]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _mistral,
    "granite": _granite,
}
"""By `model_type`."""
