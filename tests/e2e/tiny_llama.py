"""A tiny Llama for tests on live servers: 256 tokens, one for each byte, and one that ends a text.

Written without the library that usually does. Its weights are random; tests may change them.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tests.e2e.tensors import Array
from tokenizers import decoders, models, pre_tokenizers

VOCABULARY = 257
EOS = 256
HIDDEN = 32

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}

_PARAMETERS = {
    "kv_cache_memory_bytes": str(16 << 20),
    "threads": "1",
    "cpu_kernels": "torch",
    "dtype": "float32",
}


def weights() -> dict[str, Array]:
    """Random ones, by the names of Hugging Face."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Array:
        return random.normal(0, 0.3, (rows, columns)).astype(np.float32)

    one = np.ones(HIDDEN, np.float32)
    layer = {
        **{f"self_attn.{name}_proj": matrix(HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj": matrix(64, HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj": matrix(HIDDEN, 64),
        "input_layernorm": one,
        "post_attention_layernorm": one,
    }
    return {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN),
        **{f"model.layers.0.{name}.weight": value for name, value in layer.items()},
        "model.norm.weight": one,
        "lm_head.weight": matrix(VOCABULARY, HIDDEN),
    }


def write(
    repository: Path, name: str, tensors: dict[str, Array] | None = None, **parameters: str
) -> Path:
    """Put a model into a repository; the folder with its files. tensors: other weights."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors")
    _tokenizer().save(str(folder / "tokenizer.json"))
    given = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {**_PARAMETERS, **parameters}.items()
    )
    (folder.parent / "config.pbtxt").write_text(f'backend: "llm"\n{given}')
    return folder


def _tokenizer() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<end>"])
    return library


def token(text: str) -> int:
    """That of a single byte."""
    (number,) = _tokenizer().encode(text).ids
    return number
