"""config.json of an encoder -> Encoder, with how sentence-transformers makes a vector of it."""

from pathlib import Path

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.architecture import Encoder, Pooling
from naiad_backends.llm.checkpoint.fields import Fields, read_json
from naiad_backends.llm.checkpoint.huggingface_names import activation_of

ENCODERS = ("bert", "roberta", "xlm-roberta")
"""By `model_type`."""


def encoder_of(config: Fields, folder: Path, kind: str) -> Encoder:
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
        activation=activation_of(config, "hidden_act", "gelu"),  # type: ignore[arg-type]
        pooling=pooling,
        normalize=normalize,
        dimensions=_dimensions(config),
    )


def _dimensions(config: Fields) -> tuple[int, ...]:
    """What shorter vectors it was trained for, by the names that vLLM reads."""
    size = config.integer("hidden_size")
    wanted = tuple(map(int, config.numbers("matryoshka_dimensions")))
    if not all(0 < one <= size for one in wanted):
        raise config.wrong("matryoshka_dimensions", f"numbers from 1 to {size}", list(wanted))
    if not wanted and config.flag("is_matryoshka", False):
        return tuple(range(1, size))
    return wanted


def _positions(config: Fields, folder: Path, offset: int) -> int:
    longest = config.integer("max_position_embeddings")
    if longest <= offset:
        raise config.wrong("max_position_embeddings", f"more than {offset}", longest)
    return longest - offset


def _pooling(folder: Path) -> tuple[Pooling, bool]:
    """How, and whether the vector gets the length 1."""
    path = folder / "1_Pooling" / "config.json"
    modules = folder / "modules.json"
    normalize = not modules.exists() or "Normalize" in modules.read_text("utf-8", "replace")
    if not path.exists():
        return "mean", normalize
    pooling = Fields(read_json(path), str(path))
    ways: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    for name, way in ways.items():
        if pooling.flag(name, False):
            return way, normalize
    raise unsupported("this way of pooling", field=str(path), hint="there are mean, cls and last")
