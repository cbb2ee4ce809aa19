"""The ONNX files of the models that have one. Knows nothing of servers."""

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import graphs
from naiad.repository.fetch import assemble
from naiad.settings import cache_folder

_EXAMPLES = {
    "magika": "magika",
    "minilm": "minilm",
    "silero": "silero_vad",
    "streams": "silero_stream",
}
"""Folder of each model's weights in model_repository/."""


def fetched(models: Iterable[str], folder: Path) -> dict[str, Path]:
    """The files of those of `models` that have one, put into `folder` by the project's own fetch.

    Each lies in a folder with all the files that it needs, and nothing else. silero's is made a
    function of the sound alone, so that each server is sent the same.
    """
    wanted = {model: _EXAMPLES[model] for model in models if model in _EXAMPLES}
    if wanted:
        examples = Path(__file__).parent.parent / "model_repository"
        assemble(examples, folder, cache_folder(), list(wanted.values()), echo=progress)
    files = {model: folder / example / "1" / "model.onnx" for model, example in wanted.items()}
    if "silero" in files:
        stateless = folder / "stateless" / "model.onnx"
        stateless.parent.mkdir()
        graphs.without_state(files["silero"], stateless)
        files["silero"] = stateless
    return files


def progress(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr)
