"""A real tokenizer: SmolLM2's, from its GGUF file."""

from pathlib import Path

import pytest

from naiad_backends.llm.checkpoint.gguf import read_gguf
from naiad_backends.llm.text import open_tokenizer
from naiad_backends.llm.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm2_file(example_repository: Path) -> Path:
    """Its only file."""
    return example_repository / "smollm2" / "1" / "model.gguf"


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Tokenizer:
    """Its tokenizer."""
    return open_tokenizer(smollm2_file.parent, read_gguf(smollm2_file).metadata)
