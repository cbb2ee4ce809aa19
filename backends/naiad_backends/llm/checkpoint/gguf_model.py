"""GGUF metadata -> Architecture, and the tensors' names -> canonical ones.

The families differ here as they do in `huggingface`, in llama.cpp's words.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from naiad_backends.errors import invalid, unsupported
from naiad_backends.llm.checkpoint.architecture import (
    MOST_LAYERS,
    Architecture,
    Defaults,
    Layer,
    Rope,
)
from naiad_backends.llm.checkpoint.fields import Fields
from naiad_backends.llm.checkpoint.gguf import GgufFile, read_gguf
from naiad_backends.llm.checkpoint.rope import divided, longrope, plain, rope_of
from naiad_backends.llm.checkpoint.weights import (
    Checkpoint,
    Tensor,
    Weight,
    check,
    decoder_shapes,
    split,
)

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")

SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}

ENDS = {"token_embd": "embed", "output_norm": "norm", "output": "head"}

LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "post_attention_norm": "post_attn_norm",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "post_ffw_norm": "post_mlp_norm",
}


def open_gguf(path: Path) -> Checkpoint:
    """A model in one file."""
    file = read_gguf(path)
    family = Fields(file.metadata, str(path)).text("general.architecture")
    if family not in FAMILIES:
        raise unsupported(
            f"GGUF files of the architecture '{family}'",
            field=str(path),
            hint=f"there are {', '.join(FAMILIES)}",
        )
    if Fields(file.metadata, str(path)).integer("split.count", 1, least=0) > 1:
        raise unsupported(
            "a model in several GGUF files", field=str(path), hint="merge them with gguf-split"
        )
    architecture = _architecture(file, Fields(file.metadata, str(path), f"{family}."), family)
    tensors = _tensors(file.tensors, architecture, permuted=family == "llama")
    return Checkpoint(
        architecture,
        _defaults(Fields(file.metadata, str(path))),
        path.parent,
        file.metadata,
        check(tensors, decoder_shapes(architecture), path),
    )


def _defaults(fields: Fields) -> Defaults:
    """What ends a text, and recommended sampling."""
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    eos = [fields.integer(name, least=0) for name in names if fields.get(name) is not None]
    sampling = {
        ours: fields.number(f"general.sampling.{name}")
        for name, ours in SAMPLING.items()
        if fields.get(f"general.sampling.{name}") is not None
    }
    return Defaults(tuple(dict.fromkeys(eos)), sampling)


def _architecture(file: GgufFile, fields: Fields, family: str) -> Architecture:
    """Of any family; then its own."""
    heads = _uniform(fields, "attention.head_count")
    kv_heads = _uniform(fields, "attention.head_count_kv", heads)
    if heads % kv_heads:
        raise fields.wrong("attention.head_count_kv", f"a divisor of {heads}", kv_heads)
    hidden = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise unsupported("values of another size than keys", field=fields.source)
    count = fields.integer("block_count")
    if count > MOST_LAYERS:
        raise fields.wrong("block_count", f"at most {MOST_LAYERS}", count)
    has = file.tensors.__contains__
    common: dict[str, Any] = {
        "name": family,
        "vocab_size": _vocabulary(file, fields),
        "hidden_size": hidden,
        "intermediate_size": _uniform(fields, "feed_forward_length"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "layers": (Layer(),) * count,
        "ropes": (_rope(file, fields, head_dim),),
        "max_position": fields.integer("context_length"),
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "qkv_bias": has("blk.0.attn_q.bias") or has("blk.0.attn_qkv.bias"),
        "output_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_down.bias"),
        "attention_scale": fields.number("attention.scale", head_dim**-0.5),
        "tied": not has("output.weight"),
    }
    return Architecture(**common | OWN[family](fields, common))


def _uniform(fields: Fields, name: str, default: int | None = None) -> int:
    """A number, or a list of one number for each layer, which must be equal."""
    value = fields.get(name)
    if not isinstance(value, np.ndarray):
        return fields.integer(name, default)
    numbers = set(value.tolist())
    if len(numbers) != 1:
        raise unsupported(f"layers that differ in '{name}'", field=fields.source)
    return Fields({name: numbers.pop()}, fields.source).integer(name)


def _vocabulary(file: GgufFile, fields: Fields) -> int:
    """The rows of the embedding: files that say it otherwise say it wrong."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise invalid("the tensor 'token_embd.weight' is missing", field=fields.source)
    return embedding.shape[0]


def _rope(file: GgufFile, fields: Fields, head_dim: int) -> Rope:
    """Frequencies from factors in the file, or from metadata."""
    dimensions = fields.integer("rope.dimension_count", head_dim)
    if dimensions % 2 or dimensions > head_dim:
        raise fields.wrong("rope.dimension_count", f"an even part of {head_dim}", dimensions)
    theta = fields.number("rope.freq_base", 10000.0, above=1)
    if "rope_freqs.weight" in file.tensors:
        return divided(theta, dimensions, _factors(file, "rope_freqs.weight", dimensions))
    if "rope_factors_long.weight" in file.tensors:
        return longrope(
            plain(theta, dimensions),
            _factors(file, "rope_factors_short.weight", dimensions).tolist(),
            _factors(file, "rope_factors_long.weight", dimensions).tolist(),
            fields.integer("rope.scaling.original_context_length"),
            fields.number("rope.scaling.attn_factor", 1.0),
        )
    return rope_of(_scaling(fields), theta, dimensions, fields.integer("context_length"))


def _factors(file: GgufFile, name: str, dimensions: int) -> np.ndarray[Any, Any]:
    weight = file.tensors.get(name)
    if weight is None or weight.shape != (dimensions // 2,) or weight.quantized:
        raise invalid(
            f"the tensor '{name}' must hold {dimensions // 2} numbers", field=str(file.path)
        )
    return weight.float32()


def _scaling(fields: Fields) -> Fields:
    """rope.scaling.* by Hugging Face's names."""
    names = {
        "type": "rope_type",
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    values = {theirs: fields.get(f"rope.scaling.{name}") for name, theirs in names.items()}
    # Old files have a factor and no type.
    if values["rope_type"] is None and fields.get("rope.scale_linear") is not None:
        values |= {"rope_type": "linear", "factor": fields.get("rope.scale_linear")}
    return Fields(values, f"{fields.source}: {fields.prefix}rope.scaling")


def _nothing(fields: Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _qwen3(fields: Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    return {"qk_norm": True}


def _gemma(fields: Fields, common: Mapping[str, Any], large: int) -> dict[str, Any]:
    """What Gemma 2 and 3 share. large: layers of the one model whose scores are scaled otherwise,
    which the metadata do not say. The file has 1 + w of every norm."""
    hidden, heads = common["hidden_size"], common["num_heads"]
    is_large = len(common["layers"]) == large
    return {
        "post_norm": True,
        "activation": "gelu_tanh",
        "embedding_scale": hidden**0.5,
        "attention_scale": (hidden // heads if is_large else common["head_dim"]) ** -0.5,
        "score_softcap": fields.number("attn_logit_softcapping", 0.0),
        "logit_softcap": fields.number("final_logit_softcapping", 0.0),
    }


def _gemma2(fields: Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 4096)
    layers = tuple(Layer(0 if i % 2 else window) for i in range(len(common["layers"])))
    return _gemma(fields, common, large=46) | {"layers": layers}


def _gemma3(fields: Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 1024)
    every = fields.integer("attention.sliding_window_pattern", 6)
    layers = tuple(
        Layer(window, 1) if (i + 1) % every else Layer() for i in range(len(common["layers"]))
    )
    theta = fields.number("rope.freq_base_swa", 10000.0, above=1)
    near = rope_of(Fields({}, fields.source), theta, common["head_dim"], common["max_position"])
    own = {"qk_norm": True, "layers": layers, "ropes": (*common["ropes"], near)}
    return _gemma(fields, common, large=62) | own


def _phi3(fields: Fields, common: Mapping[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 0, least=0)
    return {"layers": (Layer(window),) * len(common["layers"])}


OWN: Mapping[str, Callable[[Fields, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _nothing,
    "qwen2": _nothing,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}


def _tensors(weights: Mapping[str, Weight], a: Architecture, permuted: bool) -> dict[str, Tensor]:
    """By canonical names; fused ones taken apart, permuted ones put in order."""
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    middle = a.intermediate_size
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module, _, end = name.rpartition(".")
        end = "" if end == "weight" else f".{end}"
        place = ""
        if module.startswith("blk."):
            number, _, module = module.removeprefix("blk.").partition(".")
            place = f"layers.{number}."
        tensor = Tensor.of(weight)
        if place and module == "attn_qkv":
            tensors |= split(place, (("q", queries), ("k", keys), ("v", keys)), end, tensor)
        elif place and module == "ffn_up" and weight.shape[0] == 2 * middle:
            tensors |= split(place, (("gate", middle), ("up", middle)), end, tensor)
        elif place and permuted and module in ("attn_q", "attn_k"):
            heads = a.num_heads if module == "attn_q" else a.num_kv_heads
            tensors[f"{place}{LAYER_NAMES[module]}{end}"] = _in_order(tensor, heads)
        elif place and module in LAYER_NAMES:
            tensors[f"{place}{LAYER_NAMES[module]}{end}"] = tensor
        elif not place and module in ENDS:
            tensors[f"{ENDS[module]}{end}"] = tensor
    return tensors


def _in_order(tensor: Tensor, heads: int) -> Tensor:
    """Undo what llama.cpp's converter does to the rows of llama's queries and keys: it makes
    neighbours of the pairs that rotate together, which lie half a head apart for us."""

    def read() -> Weight:
        rows = np.arange(tensor.shape[0]).reshape(heads, -1, 2)
        return tensor.read().rows(rows.swapaxes(1, 2).reshape(-1))

    return Tensor(tensor.shape, read)
