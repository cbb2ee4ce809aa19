"""The documents' requests, run as they stand against a server with the example models.

A `bash` or `python` block that names localhost:8000 or 8001 is for the server of `make serve`; a
`json` block right behind it is the answer. Other blocks say other things and are left alone.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.process import ServerProcess

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# curl says nothing of the status by itself.
_CURL = 'set -eo pipefail\ncurl() {{ command curl --no-progress-meter {options} "$@"; }}\n'


@dataclass(frozen=True)
class Example:
    """A block of a document and the answer behind it; empty where there is none."""

    place: str
    language: str
    code: str
    answer: str

    def at(self, server: ServerProcess) -> str:
        """The code with the addresses of a server."""
        return self.code.replace("localhost:8000", server.http).replace(
            "localhost:8001", server.grpc
        )


def examples(language: str) -> Iterator[Example]:
    """Those of all documents."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        blocks = list(_BLOCK.finditer(text))
        for number, block in enumerate(blocks):
            if block[1] == language and re.search(r"localhost:800[01]", block[2]):
                line = text.count("\n", 0, block.start()) + 1
                after = blocks[number + 1] if number + 1 < len(blocks) else None
                follows = after and not text[block.end() : after.start()].strip()
                answer = after[2] if after and follows and after[1] == "json" else ""
                yield Example(f"{document.name}:{line}", language, block[2], answer)


SHELL, PYTHON = list(examples("bash")), list(examples("python"))


def place(example: Example) -> str:
    return example.place


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


def test_the_readme_shows_requests() -> None:
    documents = {example.place.split(":")[0] for example in SHELL + PYTHON}
    assert "README.md" in documents


@pytest.mark.parametrize("example", SHELL, ids=place)
def test_shell(server: ServerProcess, example: Example) -> None:
    script = _CURL.format(options="" if example.answer else "--fail-with-body") + example.at(server)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if example.answer:
        assert json.loads(done.stdout) == json.loads(example.answer)
    else:
        assert done.stdout.strip(), "an answer was promised"


@pytest.mark.parametrize("example", PYTHON, ids=place)
def test_python(server: ServerProcess, example_repository: Path, example: Example) -> None:
    code = example.at(server).replace("~/.cache/naiad/examples", str(example_repository))
    # Some take a file as argument; the others do not mind.
    command = [sys.executable, "-W", "error", "-c", code, "Makefile"]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_the_request_in_the_banner(server: ServerProcess) -> None:
    _, _, request = server.output().partition("A first request:\n")
    script = _CURL.format(options="--fail-with-body") + request
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["data"] == [1.5]
