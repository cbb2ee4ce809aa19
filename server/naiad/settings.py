"""Every option of `naiad serve`: frozen, documented, with Triton's names and defaults.

The only place where the environment is read: each option may also be set as NAIAD_<OPTION>, and
NAIAD_CACHE names the folder for downloads. The command line is made from these fields.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from naiad.core.lifecycle import ControlMode
from naiad_backends.errors import invalid


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The options of a server process, one field each, in the order of `naiad serve --help`."""

    model_repository: tuple[str, ...] = _option((), "Folder of models; repeat for several.")
    model_control_mode: ControlMode = _option(
        ControlMode.NONE,
        "none: load all at start. poll: follow the disk. explicit: load and unload by request.",
    )
    repository_poll_secs: int = _option(15, "Seconds between looks at the disk in mode poll.")
    load_model: tuple[str, ...] = _option(
        (), "Model to load at start in mode explicit; '*' for all; repeat for several."
    )
    model_config_name: str = _option(
        "", "Use configs/<name>.pbtxt of a model where it exists instead of config.pbtxt."
    )
    disable_auto_complete_config: bool = _option(
        False, "Do not complete configurations from the models' files."
    )
    model_load_thread_count: int = _option(4, "How many models load at the same time.")
    strict_readiness: bool = _option(True, "Ready means that every model is ready.")
    exit_on_error: bool = _option(True, "End the server if a model fails to load at start.")
    exit_timeout_secs: int = _option(30, "Longest wait for running requests at the end.")
    backend_config: tuple[str, ...] = _option(
        (), "<backend>,<key>=<value>, or <key>=<value> for all backends; repeat for several."
    )
    id: str = _option("naiad", "Name of the server in its metadata.")
    allow_http: bool = _option(True, "Serve HTTP.")
    http_address: str = _option("127.0.0.1", "Address of the HTTP port.")
    http_port: int = _option(8000, "HTTP port; 0 picks a free one.")
    reuse_http_port: bool = _option(False, "Share the HTTP port with other processes.")
    http_max_input_size: int = _option(
        64 * 2**20, "Largest JSON part and largest JSON-decoded or raw input, in bytes."
    )
    allow_grpc: bool = _option(True, "Serve gRPC.")
    grpc_address: str = _option("127.0.0.1", "Address of the gRPC port.")
    grpc_port: int = _option(8001, "gRPC port; 0 picks a free one.")
    reuse_grpc_port: bool = _option(False, "Share the gRPC port with other processes.")
    log_verbose: int = _option(0, "0 logs what an operator needs, 1 and more also details.")

    def backend_options(self) -> dict[str, dict[str, str]]:
        """`backend_config` as backend -> key -> value; "" holds what is for all backends.

        Raises INVALID_ARG for an entry of another form.
        """
        options: dict[str, dict[str, str]] = {}
        for entry in self.backend_config:
            target, equals, value = entry.partition("=")
            backend, comma, key = target.rpartition(",")
            if not equals or not key or (comma and not backend):
                raise invalid(
                    f"'{entry}' is not of the form <backend>,<key>=<value>",
                    field="--backend-config",
                )
            options.setdefault(backend, {})[key] = value
        return options


HELP = {option.name: option.metadata["help"] for option in fields(Settings)}
"""The explanation of each option, by field name."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: NAIAD_CACHE, else `naiad` in the user's cache folder."""
    if chosen := environment.get("NAIAD_CACHE"):
        return Path(chosen)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "naiad"
