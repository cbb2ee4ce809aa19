"""Puts built kernels for language models into a wheel, which is then for one kind of machine.

Off unless asked for:

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=true python -m build --wheel
"""

import platform
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Builds all variants for x86-64 with the system's compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to the wheel, and say which machines it is for."""
        if version == "editable" or platform.machine() != "x86_64":
            return
        sys.path.insert(0, str(Path(self.root) / "backends"))
        from naiad_backends.llm.native import build

        inside = "naiad_backends/llm/native/built"
        for path in build.ship(Path(self.directory) / "kernels"):
            build_data["force_include"][str(path)] = f"{inside}/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
