"""What the interpreter does not show: the kernels compile for GPUs, and what happens without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.unit.llm.models.families import make, save

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.options import Options


def test_kernels_compile() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "_decode_kernel" in done.stdout


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from pathlib import Path
from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.options import Options

checkpoint = open_checkpoint(Path(sys.argv[1]), "dummy")
options = Options(cpu_kernels="torch", kv_cache_memory_bytes=1 << 20)
print(make_runner(checkpoint, options).description)
try:
    make_runner(checkpoint, options, "cuda:0")
except NaiadError as error:
    print(error.code, error)
"""


def test_without_triton_a_cpu_does_and_a_gpu_says_so(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", WITHOUT_TRITON, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    cpu, gpu = done.stdout.splitlines()
    assert cpu.startswith("torch")
    assert gpu.startswith("UNSUPPORTED")
    assert "triton" in gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_runner_says_so(tmp_path: Path) -> None:
    folder = save(make("llama", num_hidden_layers=1), tmp_path)
    with pytest.raises(NaiadError, match="finds no GPU") as caught:
        make_runner(open_checkpoint(folder), Options(), "cuda:0")
    assert caught.value.code == Code.UNSUPPORTED
