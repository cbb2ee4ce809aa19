"""`naiad init`: writes the beginnings of a model, out of the texts in templates/.

Knows where a model's files lie and what to type next; the texts themselves teach the rest.
"""

import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from naiad.repository.config import TEXT_FILE, YAML_FILE
from naiad.repository.layout import check_name
from naiad_backends.errors import Code, NaiadError, invalid

_REQUESTS = {
    "single": (
        "infer",
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}',
    ),
    "decoupled": ("generate_stream", '{"count": 3}'),
}


def write_model(
    name: str, repository: Path, decoupled: bool = False, force: bool = False
) -> list[Path]:
    """Write the configuration and version 1 of a model in Python; the files, as written.

    repository: made if it is not there.  decoupled: many responses to a request.
    force: write over files that are there.
    Raises INVALID_ARG for a name that no model can have and where nothing can be written,
    ALREADY_EXISTS for files that are there.
    """
    check_name(name)
    folder = repository / name
    texts = files(__package__) / "templates" / _template(decoupled)
    targets = {folder / TEXT_FILE: TEXT_FILE, folder / "1" / "model.py": "model.py"}
    _check_free(folder, list(targets), force)
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((texts / source).read_bytes())
    except OSError as error:
        raise invalid(f"'{error.filename}' cannot be written: {error.strerror}") from error
    return list(targets)


def next_steps(name: str, repository: Path, decoupled: bool = False) -> str:
    """What to type after `write_model`: a check, a server, a first request."""
    path, body = _REQUESTS[_template(decoupled)]
    url = shlex.quote(f"http://localhost:8000/v2/models/{quote(name, safe='')}/{path}")
    curl = "curl -N" if decoupled else "curl"
    return "\n".join(
        [
            "Next:",
            f"  naiad check {shlex.quote(str(repository / name))}",
            f"  naiad serve --model-repository {shlex.quote(str(repository))}",
            f"  {curl} {url} -d '{body}'",
        ]
    )


def _template(decoupled: bool) -> str:
    return "decoupled" if decoupled else "single"


def _check_free(folder: Path, targets: Sequence[Path], force: bool) -> None:
    if (folder / YAML_FILE).exists():
        raise NaiadError(
            Code.ALREADY_EXISTS,
            f"'{folder / YAML_FILE}' exists, and a model has one configuration",
            hint="remove it first, or choose another name",
        )
    there = [f"'{target}'" for target in targets if target.exists()]
    if there and not force:
        raise NaiadError(
            Code.ALREADY_EXISTS,
            f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''} already",
            hint="choose another name, or write over it with --force",
        )
