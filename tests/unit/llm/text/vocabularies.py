"""Small vocabularies of the kinds that GGUF files have, as their metadata tells them."""

from typing import Any

from naiad_backends.llm.text.gguf_tokenizer import gguf_tokenizer
from naiad_backends.llm.text.spelling import BYTES
from naiad_backends.llm.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def metadata(model: str, tokens: list[tuple[str, int]], /, **fields: Any) -> dict[str, Any]:
    """Tokens with their types, and further keys."""
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def sentencepiece_metadata(**fields: Any) -> dict[str, Any]:
    """Llama's kind: a few words, their letters, and all bytes."""
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    words = ["▁ab", "ab", "▁a", "bé", "▁▁", "▁", "a", "b", "c", "é", "漢"]
    tokens = [
        *special,
        *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
        *((word, NORMAL) for word in words),
    ]
    scores = [0.0] * 259 + [float(-place) for place in range(len(words))]
    defaults = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "scores": scores}
    return metadata("llama", tokens, **(defaults | fields))


def sentencepiece(**fields: Any) -> Tokenizer:
    """Its tokenizer."""
    return gguf_tokenizer(sentencepiece_metadata(**fields))


def byte_level_metadata(**fields: Any) -> dict[str, Any]:
    """GPT-2's kind: all bytes, two merges and some special tokens."""
    tokens = [
        *((character, NORMAL) for character in BYTES),
        ("ab", NORMAL),
        ("Ġab", NORMAL),
        ("<|end|>", CONTROL),
        ("<think>", USER_DEFINED),
    ]
    defaults = {"pre": "gpt-2", "merges": ["a b", "Ġ ab"], "eos_token_id": 258}
    return metadata("gpt2", tokens, **(defaults | fields))


def wordpiece() -> Tokenizer:
    """BERT's kind."""
    special = [(token, CONTROL) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    words = [("▁hello", NORMAL), ("▁world", NORMAL), ("s", NORMAL)]
    roles = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    return gguf_tokenizer(metadata("bert", [*special, *words], **roles))
