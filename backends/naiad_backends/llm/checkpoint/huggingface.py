"""Hugging Face folders: what is in them, opened as a checkpoint."""

from pathlib import Path

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.architecture import Architecture, Defaults, Encoder
from naiad_backends.llm.checkpoint.fields import Fields, read_json
from naiad_backends.llm.checkpoint.huggingface_decoder import DECODERS, decoder_of
from naiad_backends.llm.checkpoint.huggingface_encoder import ENCODERS, encoder_of
from naiad_backends.llm.checkpoint.huggingface_names import decoder_tensors, encoder_tensors
from naiad_backends.llm.checkpoint.safetensors import read_folder
from naiad_backends.llm.checkpoint.weights import (
    Checkpoint,
    check,
    decoder_shapes,
    encoder_shapes,
)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

GENERATORS = ("ForCausalLM", "ForConditionalGeneration")


def read_config(folder: Path) -> Fields:
    """config.json of a folder."""
    return Fields(read_json(folder / "config.json"), str(folder / "config.json"))


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
        wanted, tensors = encoder_shapes(architecture), encoder_tensors(files)
    else:
        wanted, tensors = decoder_shapes(architecture), decoder_tensors(files, architecture)
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
        return encoder_of(config, folder, kind)
    if kind not in DECODERS:
        known = ", ".join(sorted([*DECODERS, *ENCODERS]))
        raise unsupported(
            f"models of the type '{kind}'", field=config.source, hint=f"there are {known}"
        )
    classes = config.get("architectures") or []
    if isinstance(classes, list) and classes and not str(classes[0]).endswith(GENERATORS):
        raise unsupported(f"the architecture '{classes[0]}'", field=config.source)
    return decoder_of(config, kind)
