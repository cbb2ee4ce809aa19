"""Hugging Face folders: config.json -> Architecture or Encoder, and the names of their weights.

The families differ here and nowhere else.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from naiad_backends.errors import invalid, not_found, unsupported
from naiad_backends.llm.checkpoint.architecture import (
    Architecture,
    Defaults,
    Encoder,
    Layer,
    Rope,
)
from naiad_backends.llm.checkpoint.fields import Fields
from naiad_backends.llm.checkpoint.rope import rope_of
from naiad_backends.llm.checkpoint.safetensors import read_folder
from naiad_backends.llm.checkpoint.weights import (
    Checkpoint,
    Tensor,
    Weight,
    check,
    decoder_shapes,
    encoder_shapes,
)

MOST_LAYERS = 4096

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_config(folder: Path) -> Fields:
    """config.json of a folder."""
    return Fields(read_json(folder / "config.json"), str(folder / "config.json"))


def read_json(path: Path) -> Mapping[str, Any]:
    """A file with an object; NOT_FOUND or INVALID_ARG if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise not_found("it is not there", field=str(path)) from None
    except (ValueError, RecursionError, OSError) as error:
        raise invalid(f"it is not JSON: {error}", field=str(path)) from None
    if not isinstance(content, dict):
        raise invalid("it must hold an object", field=str(path))
    return content


def open_folder(folder: Path) -> Checkpoint:
    """A folder with config.json and *.safetensors."""
    config = read_config(folder)
    if config.get("quantization_config") is not None:
        method = config.part("quantization_config").text("quant_method", "unknown")
        raise unsupported(
            f"weights quantized by '{method}'", field=config.source, hint="use a GGUF file"
        )
    architecture = architecture_of(config, folder)
    files = read_folder(folder)
    if isinstance(architecture, Encoder):
        wanted, tensors = encoder_shapes(architecture), _encoder_tensors(files)
    else:
        wanted, tensors = decoder_shapes(architecture), _decoder_tensors(files, architecture)
    return Checkpoint(
        architecture, defaults_of(config, folder), folder, None, check(tensors, wanted, folder)
    )


def defaults_of(config: Fields, folder: Path) -> Defaults:
    """generation_config.json, or what config.json says about the end."""
    path = folder / "generation_config.json"
    generation = Fields(read_json(path) if path.exists() else {}, str(path))
    eos = generation.get("eos_token_id")
    eos = config.get("eos_token_id") if eos is None else eos
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(token) is int and token >= 0 for token in eos):
        raise generation.wrong("eos_token_id", "a token or a list of tokens", eos)
    sampling = {
        name: generation.number(name) for name in SAMPLING if generation.get(name) is not None
    }
    return Defaults(tuple(eos), sampling)


def architecture_of(config: Fields, folder: Path) -> Architecture | Encoder:
    """What config.json describes; UNSUPPORTED if we do not know its family."""
    kind = config.text("model_type")
    if kind == "gemma3":
        config, kind = config.part("text_config"), "gemma3_text"
    if kind in ENCODERS:
        return _encoder(config, folder, kind)
    if kind not in DECODERS:
        known = ", ".join(sorted([*DECODERS, *ENCODERS]))
        raise unsupported(
            f"models of the type '{kind}'", field=config.source, hint=f"there are {known}"
        )
    classes = config.get("architectures") or []
    if isinstance(classes, list) and classes and not str(classes[0]).endswith(GENERATORS):
        raise unsupported(f"the architecture '{classes[0]}'", field=config.source)
    return DECODERS[kind](config, _common(config, kind))


GENERATORS = ("ForCausalLM", "ForConditionalGeneration")


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
        "activation": _activation(config, "hidden_act", "silu"),
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
    theta = config.number("rope_theta", 10000.0)
    return rope_of(scaling, theta, dimensions, config.integer("max_position_embeddings", 2048))


def _longest(config: Fields) -> int:
    """YaRN stretches a context that config.json gives unstretched."""
    longest = config.integer("max_position_embeddings", 2048)
    for name in ("rope_parameters", "rope_scaling"):
        scaling = config.part(name)
        if "yarn" in (scaling.get("rope_type"), scaling.get("type")) and scaling.get("factor"):
            original = scaling.integer("original_max_position_embeddings", longest)
            longest = max(longest, int(original * scaling.number("factor")))
    return longest


def _activation(config: Fields, name: str, default: str) -> str:
    kind = config.text(name, default)
    if kind not in ACTIVATIONS:
        raise unsupported(f"the activation '{kind}'", field=config.source)
    return ACTIVATIONS[kind]


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
        "activation": _activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "embedding_scale": common["hidden_size"] ** 0.5,
        "attention_scale": config.number("query_pre_attn_scalar", 256.0) ** -0.5,
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
        "logit_scale": 1 / config.number("logits_scaling", 1.0),
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

ENCODERS = ("bert", "roberta", "xlm-roberta")


def _encoder(config: Fields, folder: Path, kind: str) -> Encoder:
    """BERT and RoBERTa, with how sentence-transformers makes one vector of their tokens'."""
    if config.text("position_embedding_type", "absolute") != "absolute":
        raise unsupported("relative positions", field=config.source)
    # Position 0 of RoBERTa has the number behind the padding token's.
    offset = 0 if kind == "bert" else config.integer("pad_token_id", 1, least=0) + 1
    pooling, normalize = _pooling(folder)
    return Encoder(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_heads=config.integer("num_attention_heads"),
        num_layers=config.integer("num_hidden_layers"),
        max_position=_positions(config, folder, offset),
        position_offset=offset,
        token_types=config.integer("type_vocab_size", 2),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        activation=_activation(config, "hidden_act", "gelu"),  # type: ignore[arg-type]
        pooling=pooling,  # type: ignore[arg-type]
        normalize=normalize,
        dimensions=tuple(map(int, config.numbers("matryoshka_dimensions"))),
    )


def _positions(config: Fields, folder: Path, offset: int) -> int:
    longest = config.integer("max_position_embeddings")
    if longest <= offset:
        raise config.wrong("max_position_embeddings", f"more than {offset}", longest)
    return longest - offset


def _pooling(folder: Path) -> tuple[str, bool]:
    """How, and whether the vector gets the length 1."""
    path = folder / "1_Pooling" / "config.json"
    modules = folder / "modules.json"
    normalize = not modules.exists() or "Normalize" in modules.read_text("utf-8", "replace")
    if not path.exists():
        return "mean", normalize
    pooling = Fields(read_json(path), str(path))
    ways = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    for name, way in ways.items():
        if pooling.flag(name, False):
            return way, normalize
    raise unsupported("this way of pooling", field=str(path), hint="there are mean, cls and last")


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


def _decoder_tensors(files: Mapping[str, Tensor], a: Architecture) -> dict[str, Tensor]:
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


def split(
    place: str, parts: tuple[tuple[str, int], ...], end: str, tensor: Tensor
) -> dict[str, Tensor]:
    """Weights whose rows lie one behind the other in one tensor."""
    tensors, start = {}, 0
    for name, count in parts:
        rows = slice(start, min(start + count, tensor.shape[0]))
        shape = (max(rows.stop - rows.start, 0), *tensor.shape[1:])

        def read(rows: slice = rows) -> Weight:
            return tensor.read().rows(rows)

        tensors[f"{place}{name}{end}"] = Tensor(shape, read)
        start += count
    return tensors


def _encoder_tensors(files: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
