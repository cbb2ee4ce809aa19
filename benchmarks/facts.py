"""What a report says of the run: the command, the machine and Python. Knows nothing of figures."""

import os
import platform
import shlex
import sys
from pathlib import Path


def facts(module: str) -> dict[str, str]:
    """Of a run of `python -m module`, in the order in which a reader wants them."""
    return {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}".rstrip(),
        "machine": f"{os.cpu_count()} CPUs, {_processor()}, Linux {platform.release()}",
        "Python": platform.python_version(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
