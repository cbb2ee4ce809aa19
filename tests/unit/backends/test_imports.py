"""What importing a backend brings along: its own framework and no tool for tests."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("naiad_backends.registry", ["onnxruntime", "pytest"]),
        ("naiad_backends.identity.backend", ["onnxruntime", "pytest"]),
        ("naiad_backends.llm.backend", ["torch", "transformers", "naiad", "pytest"]),
        ("naiad_backends.onnx.backend", ["onnx", "torch", "pytest"]),
        ("naiad_backends.python.runtime.pb_utils", ["naiad", "google", "aiohttp", "torch"]),
    ],
)
def test_imports_are_few(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
