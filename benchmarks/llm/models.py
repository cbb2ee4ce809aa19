"""SmolLM2 in the form that each engine likes best, all from the one GGUF file.

Owns the conversions, which are kept under the peers' folder.
"""

import subprocess
import tempfile
from pathlib import Path

from benchmarks.llm.convert import convert
from benchmarks.llm.peers import Peers
from benchmarks.weights import progress
from naiad.repository.fetch import assemble
from naiad.settings import cache_folder


class Models:
    """Files and folders of the model."""

    def __init__(self, home: Path) -> None:
        """home: where conversions are kept."""
        self._home = home / "models"
        self._home.mkdir(parents=True, exist_ok=True)

    def q4_1(self) -> Path:
        """The file as it is published."""
        target = self._home / "repository"
        examples = Path(__file__).parents[2] / "model_repository"
        assemble(examples, target, cache_folder(), ["smollm2"], echo=progress)
        return target / "smollm2" / "1" / "model.gguf"

    def q4_0(self, peers: Peers) -> Path:
        """Quantized once more to the type for which llama.cpp has its fastest kernels."""
        found = self._home / "smollm2-q4_0.gguf"
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=self._home) as folder:
                made = Path(folder) / "model.gguf"
                quantize = str(peers.llamacpp("llama-quantize"))
                source = str(self.q4_1())
                subprocess.run(
                    [quantize, "--allow-requantize", source, str(made), "Q4_0"], check=True
                )
                made.rename(found)
        return found

    def folder(self) -> Path:
        """A Hugging Face folder with bfloat16 weights, for engines that read no GGUF."""
        found = self._home / "smollm2-bf16"
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=self._home) as folder:
                made = Path(folder) / "model"
                convert(self.q4_1(), made)
                made.rename(found)
        return found
