"""The servers that Naiad is compared with: their environments and their commands.

Each peer lives in a virtual environment of its own under a cache folder, made on first use.
Knows nothing of models and load.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.repositories import PEER_MODELS

REQUIREMENTS = {
    # The wheel carries Triton 2.51 (CPU, Python backend only) as a binary.
    "triton": ("nvidia-pytriton==0.7.0", "onnxruntime", "numpy<3"),
    "mlserver": ("mlserver==1.7.1", "onnxruntime"),
}
NAMES = tuple(REQUIREMENTS)


@dataclass(frozen=True)
class Ports:
    """Three free ports on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Command:
    """What starts a server."""

    argv: list[str]
    environment: dict[str, str]
    """Added to this process's own."""


def environment(home: Path, name: str) -> Path:
    """The folder of the peer's virtual environment under `home`, made if it is not there yet."""
    folder = home / name
    marker = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[name]) + "\n"
    if not marker.is_file() or marker.read_text() != wanted:
        print(f"making an environment for {name}, some minutes", file=sys.stderr)
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS[name]]
        if subprocess.run(command, check=False).returncode != 0:
            raise BenchmarkError(f"pip could not install {name}; its messages stand above")
        marker.write_text(wanted)
    return folder


def triton(home: Path, repository: Path, ports: Ports) -> Command:
    """Triton's binary on `repository`, all ports on loopback.

    Its Python backend starts one process per model instance, which must find libpython of the
    version it was built for and the packages of the environment.
    """
    env = environment(home, "triton")
    packages = _packages(env)
    root = packages / "pytriton" / "tritonserver"
    base = Path(sys.base_prefix)
    argv = [
        str(root / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_triton_backends(home, root)}",
        f"--cache-directory={root / 'caches'}",
        *(f"--{each}-address=127.0.0.1" for each in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
    ]
    libraries = [packages / "nvidia_pytriton.libs", base / "lib"]
    return Command(
        argv,
        {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "PATH": f"{env / 'bin'}:{os.defpath}",
            "PYTHONHOME": str(base),
            "PYTHONPATH": str(packages),
        },
    )


def mlserver(home: Path, repository: Path, ports: Ports) -> Command:
    """MLServer with the models in its own process, which is its fast form.

    Writes its `settings.json` into `repository`.
    """
    env = environment(home, "mlserver")
    settings = {
        "host": "127.0.0.1",
        "http_port": ports.http,
        "grpc_port": ports.grpc,
        "metrics_port": ports.metrics,
        "parallel_workers": 0,
        "debug": False,  # no access log
        "grpc_max_message_length": -1,
    }
    (repository / "settings.json").write_text(json.dumps(settings))
    argv = [str(env / "bin" / "mlserver"), "start", str(repository)]
    return Command(argv, {"PYTHONPATH": str(PEER_MODELS)})


def _packages(env: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(env), "platbase": str(env)}))


def _triton_backends(home: Path, root: Path) -> Path:
    """A backend folder with the process for this Python version; the wheel keeps them apart."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file() or not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise BenchmarkError(
            f"Triton's Python backend cannot run on this Python {version}: it needs "
            f"{stub.name} for that version and a Python built with a shared libpython"
        )
    backends = home / f"triton-backends-{version}"
    if not (backends / "python" / stub.name).is_file():
        shutil.copytree(root / "backends", backends, dirs_exist_ok=True)
        shutil.copy2(stub, backends / "python")
    return backends
