"""The kernels compile for GPUs, which their run in the interpreter does not show."""

import os
import subprocess
import sys
from pathlib import Path


def test_kernels_compile() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "_decode_kernel" in done.stdout
