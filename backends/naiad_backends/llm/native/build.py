"""Builds the kernels with the system's compiler, once for each text, compiler and kind of CPU.

Knows nothing of what they compute. A wheel may bring built ones (`ship`), which need no compiler.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from naiad_backends.errors import NaiadError, unsupported

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    # The same additions in the same order everywhere: rows must not depend on their neighbours.
    *("-ffp-contract=off", "-fno-math-errno"),
)

VARIANTS: Mapping[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "avx512-vnni": (
        ("-march=x86-64-v4", "-mavx512vnni"),
        frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma", "f16c")),
    ),
    "x86-64-v3": (("-march=x86-64-v3",), frozenset(("avx2", "fma", "f16c", "bmi2"))),
    "portable": ((), frozenset()),
}
"""From fast to slow: the compiler's flags, and what /proc/cpuinfo must name."""


def library(folder: Path) -> Path:
    """The best built library for this CPU; from the wheel, or below `folder`, built there if it is
    not there yet. UNSUPPORTED, with the reason, if that cannot be."""
    variant = best_variant()
    shipped = FOLDER / "built" / f"{variant}-{_digest(FLAGS, VARIANTS[variant][0])}.so"
    if shipped.exists():
        return shipped
    compiler = find_compiler()
    return build(variant, compiler, folder)


def build(variant: str, compiler: str, folder: Path) -> Path:
    """Compile one variant into `folder` unless it is there. Of several processes one compiles."""
    flags = VARIANTS[variant][0]
    target = folder / f"{variant}-{_digest(FLAGS, flags, (compiler, _version(compiler)))}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, flags, target)
    except OSError as error:
        raise unsupported(
            f"the native kernels cannot be built in '{folder}': {error.strerror or error}",
            hint="mend that, or name another folder by NAIAD_CACHE",
        ) from None
    return target


def ship(folder: Path) -> list[Path]:
    """For packagers: build the fast variants of x86-64 into `folder`, under the names that
    `library` looks for."""
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    for variant, (flags, needed) in VARIANTS.items():
        if needed:
            target = folder / f"{variant}-{_digest(FLAGS, flags)}.so"
            _compile(compiler, flags, target)
            built.append(target)
    return built


def best_variant() -> str:
    """The fastest that this CPU can run."""
    features = _cpu_features() if platform.machine() == "x86_64" else frozenset()
    return next(name for name, (_, needed) in VARIANTS.items() if needed <= features)


def find_compiler() -> str:
    """UNSUPPORTED if there is none."""
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise unsupported(
        "there is no C++ compiler to build the native kernels with",
        hint="install g++ or clang++, or set cpu_kernels to 'torch'",
    )


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        output = Path(scratch) / "library.so"
        command = [compiler, *FLAGS, *flags, str(FOLDER / "src" / "library.cpp"), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise _failed(done.stderr)
        os.replace(output, target)


def _failed(errors: str) -> NaiadError:
    lines = [line for line in errors.splitlines() if "error" in line] or errors.splitlines()
    return unsupported(
        f"the compiler could not build the native kernels: {lines[0] if lines else 'no message'}",
        hint="set cpu_kernels to 'torch'",
    )


@cache
def _cpu_features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _digest(*parts: tuple[str, ...]) -> str:
    text = hashlib.sha256(repr(parts).encode())
    for path in sorted((FOLDER / "src").iterdir()):
        text.update(path.name.encode() + b"\0" + path.read_bytes())
    return text.hexdigest()[:20]
