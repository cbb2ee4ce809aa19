"""Text: tokenizers, chat templates, detokenization and stop strings.

Runs in the server's process, so nothing here imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from naiad_backends.llm.text.chat import ChatTemplate
from naiad_backends.llm.text.gguf_tokenizer import gguf_templates, gguf_tokenizer
from naiad_backends.llm.text.huggingface import folder_templates, folder_tokenizer, read_template
from naiad_backends.llm.text.tokenizer import Tokenizer


def open_tokenizer(folder: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a model: of the GGUF file with this metadata, else of the folder."""
    return folder_tokenizer(folder) if metadata is None else gguf_tokenizer(metadata)


def open_template(
    tokenizer: Tokenizer,
    folder: Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    file: str = "",
    trust_requests: bool = False,
) -> ChatTemplate | None:
    """The chat template of a model, from the same place; None if it has none.

    file: one that is used instead, if not empty.  trust_requests: see `ChatTemplate`.
    """
    templates = folder_templates(folder) if metadata is None else gguf_templates(metadata)
    if file:
        templates = {"default": read_template(Path(file))}
    if not templates:
        return None
    return ChatTemplate(templates, tokenizer.specials, trust_requests=trust_requests)
