"""Opens what stands in a model's folder, whatever its format."""

from pathlib import Path

from naiad_backends.errors import invalid, not_found
from naiad_backends.llm.checkpoint.dummy import open_dummy
from naiad_backends.llm.checkpoint.gguf_model import open_gguf
from naiad_backends.llm.checkpoint.huggingface import open_folder
from naiad_backends.llm.checkpoint.weights import Checkpoint

FORMATS = ("auto", "dummy")


def open_checkpoint(path: Path, load_format: str = "auto") -> Checkpoint:
    """Map the weights of a model; none of them is read yet.

    path: a GGUF file, a folder with one, or a Hugging Face folder.  load_format: `auto`, or `dummy`
    for random weights, which needs only config.json.

    NOT_FOUND if there is no model, INVALID_ARG if a file is damaged or a weight is missing or has a
    wrong shape, UNSUPPORTED if we do not know the family or the format.
    """
    if load_format not in FORMATS:
        raise invalid(f"'{load_format}' is not one of {', '.join(FORMATS)}", field="load_format")
    if not path.exists():
        raise not_found("there is no such file or folder", field=str(path))
    if load_format == "dummy":
        return open_dummy(path)
    if path.is_file():
        return open_gguf(path)
    if (path / "config.json").exists():
        return open_folder(path)
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise not_found("there is neither a config.json nor a *.gguf file", field=str(path))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise invalid(f"there are several GGUF files: {names}", field=str(path), hint="name one")
    return open_gguf(files[0])
