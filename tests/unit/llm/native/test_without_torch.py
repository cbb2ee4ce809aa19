"""Which models need torch, by processes that do not find it."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.llm.models import encoders
from tests.unit.llm.models.families import make, save

# Arguments: a model and where kernels are built.
WRITE = """
import sys
sys.modules["torch"] = None
from naiad_backends.errors import NaiadError
from naiad_backends.llm.engine.loading import load
from naiad_backends.llm.messages import Add, Start
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

options = Options(max_model_len=32, threads=1, kv_cache_memory_bytes=8 << 20)
try:
    work = load(Start(sys.argv[1], options, built=sys.argv[2]))
except NaiadError as error:
    sys.exit(str(error))
rules = Sampling(max_tokens=4, logprobs=2, repetition_penalty=1.1, logit_bias={5: 1.0}, seed=1)
work.take(Add(1, [3, 4, 5], rules))
while not work.idle:
    print(*[token for output in work.run().outputs for token in output.tokens])
"""


def write(model: Path, built: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WRITE, str(model), str(built)]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None)


def test_our_kernels_do_without_torch(tmp_path: Path, built: Path) -> None:
    done = write(save(make("llama"), tmp_path), built)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4


def test_other_models_say_what_to_install(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    encoders.make(tmp_path, "bert")
    llama = save(make("llama"), tmp_path_factory.mktemp("llama"))
    without_compiler = {"PATH": "", "HOME": str(tmp_path)}

    for done in (write(tmp_path, tmp_path), write(llama, tmp_path, **without_compiler)):
        assert done.returncode == 1
        assert "; run: pip install 'naiad[torch]'" in done.stderr
