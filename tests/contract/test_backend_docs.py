"""The example in docs/backends.md is real: it is taken from the page and passes its own suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def test_the_example_passes_the_suite(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2, "the backend and its suite"
    (tmp_path / "test_line.py").write_text("\n".join(blocks))
    plugins = ["-p", "no:cacheprovider", "-p", "no:asyncio"]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, "."]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1\d passed", done.stdout), done.stdout
